"""What every method does with errors, with callers that leave, and when the server shuts down; without a transport."""

import asyncio
import struct
from collections.abc import Callable

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from kilolayer._internal.blocks_pb2 import ActRequestBlocks
from kilolayer.v1 import policy_pb2 as pb
from serving.api.handlers import RpcHandlers, parse_blocks
from serving.api.policy_service import PolicyService
from serving.api.rpc import RpcContext
from serving.errors import (
    DrainingError,
    InvalidRequestError,
    MemoryLimitError,
    OverloadedError,
    Reason,
    UnexpectedError,
)
from serving.telemetry.metrics import Metrics
from tests.serving.fakes import MODEL, AnsweringBatcher, FakeBatcher, policies_of, turn_loop

GOOD = pb.ActRequest(state=[0] * 4, goal=[0] * 2).SerializeToString()
ACT = "/kilolayer.v1.Policy/Act"


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Service:
    """The method Act around `batcher`."""

    def __init__(self, batcher: FakeBatcher) -> None:
        self.clock = Clock()
        self.batcher = batcher
        self._collectors = CollectorRegistry()
        self.handlers = RpcHandlers(Metrics(self._collectors), clock=self.clock)
        service = PolicyService(policies_of(batcher), handlers=self.handlers, max_rows=8).service()
        self._act = service.unary["Act"]

    async def act(
        self, raw: bytes = GOOD, *, timeout_s: float = 10, hold_reply: Callable[[int], None] = lambda _size: None
    ) -> bytes:
        context = RpcContext(ACT, self.clock.now_s + timeout_s, "ipv4:10.0.0.7:1", hold_reply=hold_reply)
        return await self._act(raw, context)

    def count(self, code: str, policy: str = MODEL) -> float | None:
        labels = {"method": "Act", "policy": policy, "code": code}
        return self._collectors.get_sample_value("kilolayer_requests_total", labels)

    def total_s(self) -> float | None:
        return self._collectors.get_sample_value("kilolayer_total_seconds_sum", {"method": "Act", "policy": MODEL})


async def test_a_reply_that_the_connection_may_not_hold_is_counted_with_the_status_that_the_caller_gets() -> None:
    service, sizes = Service(AnsweringBatcher()), list[int]()

    def refuse(size: int) -> None:
        sizes.append(size)
        raise MemoryLimitError("too much")

    reply = await service.act()
    with pytest.raises(MemoryLimitError):
        await service.act(hold_reply=refuse)
    assert sizes == [len(reply)]
    assert (service.count("OK"), service.count("RESOURCE_EXHAUSTED")) == (1, 1)


async def test_an_answer_is_counted_with_the_time_it_took() -> None:
    service = Service(FakeBatcher())
    answering = asyncio.create_task(service.act())
    await service.batcher.until_admitted(1)
    service.clock.now_s += 0.25
    service.batcher.answer(np.array([[0.5, -1]], np.float32))
    reply = pb.ActResponse.FromString(await answering)
    assert (list(reply.action), reply.queue_us, reply.compute_us, reply.batch_rows) == ([0.5, -1], 125000, 500000, 8)
    assert (service.count("OK"), service.total_s()) == (1, 0.25)
    assert service.batcher.admitted[0].connection == "ipv4:10.0.0.7:1"


async def test_of_the_candidates_of_each_row_the_one_with_the_highest_energy_is_the_answer() -> None:
    service = Service(FakeBatcher())
    request = pb.ActRequest(state=[0] * 8, goal=[0] * 2, mode="ACT_MODE_BEST_OF", candidates=3)
    answering = asyncio.create_task(service.act(request.SerializeToString()))
    await service.batcher.until_admitted(1)
    # Three candidates for each of two rows: two values of action, and the energy.
    first, second = [[1, 1, -5], [2, 2, -3], [3, 3, -4]], [[4, 4, -1], [5, 5, -2], [6, 6, -9]]
    service.batcher.answer(np.array([*first, *second], np.float32))
    assert list(pb.ActResponse.FromString(await answering).action) == [2, 2, 4, 4]


@pytest.mark.parametrize("failure", [RuntimeError("a secret"), asyncio.CancelledError("a secret")])
@pytest.mark.parametrize("when", ["at admission", "while it is computed"])
async def test_no_foreign_error_leaves_a_method(
    failure: BaseException, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(FakeBatcher(failure if when == "at admission" else None))
    answering = asyncio.create_task(service.act())
    if when == "while it is computed":
        await service.batcher.until_admitted(1)
        if isinstance(failure, asyncio.CancelledError):
            service.batcher.admitted[0].result.cancel("a secret")
        else:
            service.batcher.admitted[0].result.set_exception(failure)
    with pytest.raises(UnexpectedError, match="^the server failed on this call; its log says why$"):
        await answering
    assert service.count("INTERNAL") == 1
    (record,) = caplog.records
    assert record.exc_info
    assert isinstance(record.exc_info[1], type(failure))
    assert record.message == f"{ACT} failed"


async def test_a_refusal_leaves_as_it_is_and_is_counted() -> None:
    failure = OverloadedError("full", reason=Reason.QUEUE_AGE)
    service = Service(FakeBatcher(failure))
    with pytest.raises(OverloadedError) as refused:
        await service.act()
    assert refused.value is failure
    assert service.count("RESOURCE_EXHAUSTED") == 1


async def test_bytes_that_are_not_a_request_are_counted_without_a_policy() -> None:
    service = Service(FakeBatcher())
    with pytest.raises(InvalidRequestError, match="the 7 bytes of the request are not a kilolayer.v1.ActRequest mess"):
        await service.act(b"\xff" * 7)
    assert service.count("INVALID_ARGUMENT", "(unknown)") == 1


@pytest.mark.parametrize(("code", "after_s"), [("CANCELLED", 9.5), ("DEADLINE_EXCEEDED", 10.0)])
async def test_a_caller_that_leaves_takes_its_request_along_and_is_counted_as_it_left(
    code: str, after_s: float
) -> None:
    service = Service(FakeBatcher())
    answering = asyncio.create_task(service.act(timeout_s=10))
    await service.batcher.until_admitted(1)
    service.clock.now_s += after_s
    answering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answering
    assert service.batcher.withdrawn == service.batcher.admitted
    assert service.count(code) == 1


async def test_an_interrupt_of_the_process_is_passed_on() -> None:
    service = Service(FakeBatcher(SystemExit(3)))
    with pytest.raises(SystemExit):
        await service.act()
    assert service.count("UNKNOWN") == 1


async def test_a_request_has_until_its_own_limit_or_the_deadline_of_the_call() -> None:
    service = Service(AnsweringBatcher())
    for limit_us, timeout_s in ((0, 10.0), (2500, 10.0), (20_000_000, 10.0), (0, float("inf"))):
        raw = pb.ActRequest(state=[0] * 4, goal=[0] * 2, timeout_us=limit_us).SerializeToString()
        await service.act(raw, timeout_s=timeout_s)
    assert service.batcher.timeouts_s == [10, 0.0025, 10, None]


async def test_calls_are_held_while_the_server_drains_and_refused_when_told() -> None:
    service = Service(AnsweringBatcher())
    service.handlers.begin_draining()
    held = asyncio.create_task(service.act())
    await turn_loop()
    assert not held.done()
    service.handlers.refuse_held()
    with pytest.raises(DrainingError, match="shutting down"):
        await held
    assert service.count("UNAVAILABLE") == 1
    assert service.batcher.admitted == []


EIGHT = [1, 2, 3, 4, 5, 6, 7, 8]
REQUEST = pb.ActRequest(policy="p", state=EIGHT, goal=[10, 20, 30, 40], sequence=2**64 - 1, rows=2)


def without_state() -> pb.ActRequest:
    rest = pb.ActRequest()
    rest.CopyFrom(REQUEST)
    rest.ClearField("state")
    return rest


def in_pieces() -> bytes:
    """The packed block of states in two fields, which protobuf joins."""
    halves = [pb.ActRequest(state=EIGHT[:3]), pb.ActRequest(state=EIGHT[3:])]
    return b"".join(part.SerializeToString() for part in (*halves, without_state()))


def unpacked() -> bytes:
    """Every state in a field of its own (wire type 5), as proto2 senders do."""
    values = b"".join(bytes([3 << 3 | 5]) + struct.pack("<f", value) for value in EIGHT)
    return without_state().SerializeToString() + values


def from_a_later_version() -> bytes:
    return REQUEST.SerializeToString() + bytes([15 << 3, 1])  # field 15, which this version does not have


@pytest.mark.parametrize("encode", [REQUEST.SerializeToString, in_pieces, unpacked, from_a_later_version])
def test_every_legal_encoding_is_read_alike(encode: Callable[[], bytes]) -> None:
    raw = encode()
    assert list(pb.ActRequest.FromString(raw).state) == EIGHT
    request = parse_blocks(raw, ActRequestBlocks, pb.ActRequest)
    assert struct.unpack("<8f", request.state) == tuple(EIGHT)
    assert struct.unpack("<4f", request.goal) == (10, 20, 30, 40)
    assert (request.policy, request.sequence, request.rows) == ("p", 2**64 - 1, 2)
