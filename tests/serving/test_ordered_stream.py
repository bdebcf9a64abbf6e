"""One stream without a transport: order, backpressure, and every way in which a stream ends."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from kilolayer.v1 import policy_pb2 as pb
from serving.api.handlers import RpcHandlers
from serving.api.policy_service import PolicyService
from serving.api.rpc import RpcContext
from serving.errors import DrainingError, InvalidRequestError, NotReadyError, OverloadedError, Reason, UnexpectedError
from serving.policies.registry import PolicyRegistry
from serving.telemetry.metrics import Metrics
from tests.serving.fakes import MODEL, AnsweringBatcher, FakeBatcher, policies_of, turn_loop


class Peer:
    """Sends `count` requests, then `last`, and then nothing more."""

    def __init__(self, count: int, *, last: bytes | None = None, ends: bool = False) -> None:
        self.sent = 0
        self._count = count
        self._last = last
        self._ends = ends

    async def requests(self) -> AsyncIterator[bytes]:
        for number in range(self._count):
            self.sent += 1
            yield pb.ActRequest(state=[0] * 4, goal=[0] * 2, sequence=number).SerializeToString()
        if self._last is not None:
            yield self._last
        if not self._ends:
            await asyncio.Event().wait()


class Stream:
    """ActStream between `peer` and `batcher`."""

    def __init__(self, peer: Peer, batcher: FakeBatcher, *, policies: PolicyRegistry | None = None) -> None:
        self._collectors = CollectorRegistry()
        self.handlers = RpcHandlers(Metrics(self._collectors), clock=lambda: 0.0)
        service = PolicyService(policies or policies_of(batcher), handlers=self.handlers, max_rows=8).service()
        self.replies: AsyncGenerator[bytes] = service.streams["ActStream"](
            peer.requests(), RpcContext("/kilolayer.v1.Policy/ActStream")
        )

    async def reply(self) -> pb.ActResponse:
        return pb.ActResponse.FromString(await asyncio.wait_for(anext(self.replies), timeout=60))

    def count(self, code: str, policy: str = MODEL) -> float | None:
        labels = {"method": "ActStream", "policy": policy, "code": code}
        return self._collectors.get_sample_value("kilolayer_requests_total", labels)


def answer(batcher: FakeBatcher, index: int) -> None:
    batcher.answer(np.full((1, 2), index, np.float32), index)


async def test_replies_come_in_the_order_of_the_requests() -> None:
    batcher = FakeBatcher()
    stream = Stream(Peer(3, ends=True), batcher)
    first = asyncio.create_task(stream.reply())
    await batcher.until_admitted(3)
    answer(batcher, 2)
    answer(batcher, 1)
    await turn_loop()
    assert not first.done()
    answer(batcher, 0)
    replies = [await first, await stream.reply(), await stream.reply()]
    assert [(reply.sequence, list(reply.action)) for reply in replies] == [(0, [0, 0]), (1, [1, 1]), (2, [2, 2])]
    assert await anext(stream.replies, None) is None
    assert stream.count("OK") == 3


async def test_a_peer_that_does_not_take_its_replies_is_not_read_from() -> None:
    peer, batcher = Peer(100), FakeBatcher()
    stream = Stream(peer, batcher)
    first = asyncio.create_task(stream.reply())
    await batcher.until_admitted(64)
    answer(batcher, 0)
    await first
    await turn_loop()
    assert (len(batcher.admitted), peer.sent) == (64, 64)  # the first reply is not yet taken: no room
    second = asyncio.create_task(stream.reply())  # which takes the first
    await batcher.until_admitted(65)
    await turn_loop()
    assert (len(batcher.admitted), peer.sent) == (65, 65)
    answer(batcher, 1)
    assert (await second).sequence == 1


async def test_a_peer_that_leaves_takes_its_requests_along() -> None:
    batcher = FakeBatcher()
    stream = Stream(Peer(100), batcher)
    waiting = asyncio.create_task(stream.reply())
    await batcher.until_admitted(64)
    waiting.cancel()
    await asyncio.wait({waiting})
    assert waiting.cancelled()
    assert batcher.withdrawn == batcher.admitted
    assert stream.count("CANCELLED") == 64


async def test_a_peer_that_leaves_while_a_reply_is_sent_takes_the_others_along() -> None:
    batcher = FakeBatcher()
    stream = Stream(Peer(3), batcher)
    first = asyncio.create_task(stream.reply())
    await batcher.until_admitted(3)
    answer(batcher, 0)
    await first
    await stream.replies.aclose()  # as a transport does that could not send it
    assert set(batcher.admitted[1:]) <= set(batcher.withdrawn)
    assert (stream.count("OK"), stream.count("CANCELLED")) == (1, 2)


async def test_a_refused_request_gets_a_failure_and_the_stream_goes_on() -> None:
    batcher = AnsweringBatcher(OverloadedError("full", reason=Reason.DEADLINE_TOO_SHORT))
    stream = Stream(Peer(2), batcher)
    refused = await stream.reply()
    assert (refused.sequence, refused.failure.code, refused.failure.message) == (0, 8, "full")
    assert refused.failure.reason == "deadline_too_short"
    assert list(refused.action) == []
    assert (await stream.reply()).sequence == 1
    assert stream.count("RESOURCE_EXHAUSTED") == 2


async def test_bytes_that_are_not_a_request_end_the_stream_after_the_replies_before_them() -> None:
    stream = Stream(Peer(1, last=b"\xff" * 7), AnsweringBatcher())
    assert (await stream.reply()).sequence == 0
    with pytest.raises(InvalidRequestError, match="the 7 bytes of the request are not a kilolayer.v1.ActRequest"):
        await stream.reply()
    assert (stream.count("OK"), stream.count("INVALID_ARGUMENT", "(unknown)")) == (1, 1)


async def test_draining_answers_what_was_received_and_ends_the_stream() -> None:
    batcher = FakeBatcher()
    stream = Stream(Peer(2), batcher)
    first = asyncio.create_task(stream.reply())
    await batcher.until_admitted(2)
    stream.handlers.begin_draining()
    answer(batcher, 0)
    answer(batcher, 1)
    assert [(await first).sequence, (await stream.reply()).sequence] == [0, 1]
    with pytest.raises(DrainingError):
        await stream.reply()


async def test_a_stream_whose_first_request_is_not_yet_received_when_the_server_drains_ends() -> None:
    peer = Peer(1)
    stream = Stream(peer, AnsweringBatcher())
    first = asyncio.create_task(stream.reply())
    await asyncio.sleep(0)  # the method runs, and its reader does not yet
    await asyncio.sleep(0)
    assert peer.sent == 0
    stream.handlers.begin_draining()
    with pytest.raises(DrainingError):
        await first


async def test_a_stream_that_begins_while_the_server_drains_is_held_and_refused() -> None:
    stream = Stream(Peer(1), AnsweringBatcher())
    stream.handlers.begin_draining()
    held = asyncio.create_task(stream.reply())
    await turn_loop()
    assert not held.done()
    stream.handlers.refuse_held()
    with pytest.raises(DrainingError):
        await held


async def test_a_stream_is_refused_while_the_server_compiles() -> None:
    peer = Peer(1)
    stream = Stream(peer, AnsweringBatcher(), policies=PolicyRegistry(frozenset({MODEL}), default=MODEL))
    with pytest.raises(NotReadyError, match="still compiling"):
        await stream.reply()
    assert peer.sent == 0


async def test_a_bug_while_requests_are_admitted_ends_the_stream_with_our_text() -> None:
    stream = Stream(Peer(1), FakeBatcher(RuntimeError("a secret")))
    with pytest.raises(UnexpectedError, match="^the server failed on this call; its log says why$"):
        await stream.reply()
