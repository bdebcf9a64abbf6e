"""The guard of a gRPC transport: nothing of a refused call is read, and streams are checked message by message."""

import asyncio
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from kilolayer.v1 import policy_pb2 as pb
from serving.access.guard import Guard
from serving.access.refusals import Refusals
from serving.access.roles import Role
from serving.access.token_watch import TokenWatch
from serving.access.tokens import Token, Tokens
from serving.api.grpc_transport import GrpcTransport
from serving.api.health import Health
from serving.api.open_inference import open_inference_pb2 as oip
from serving.sockets import TcpAddress
from serving.telemetry.metrics import Metrics
from tests.serving.access.services import Services, outcome, started
from tests.serving.access.token_samples import bearer, secret, token

ACT, ACT_STREAM, LIST = (f"/kilolayer.v1.Policy/{name}" for name in ("Act", "ActStream", "List"))
LIVE = "/inference.GRPCInferenceService/ServerLive"
HEALTH = "/grpc.health.v1.Health"
MODEL_STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
GOOD = pb.ActRequest(state=[0] * 4, goal=[0] * 2, sequence=7).SerializeToString()
REFUSED = ("UNAUTHENTICATED", "unauthenticated")
LIMITED = ("RESOURCE_EXHAUSTED", "rate_limit")


@pytest.mark.parametrize("path", [ACT, ACT_STREAM, MODEL_STREAM])
@pytest.mark.parametrize("reads_itself", [False, True])
async def test_a_call_is_refused_before_its_request_is_sent(tmp_path: Path, path: str, reads_itself: bool) -> None:
    async with started(Services(tmp_path, reads_itself=reads_itself)) as services, asyncio.timeout(60):
        for metadata in (None, bearer("nobody"), bearer("of-report")):
            call: Any = services.channel.stream_stream(path)(metadata=metadata)  # it sends no message
            code, _ = await outcome(call)
            assert code == ("PERMISSION_DENIED" if metadata == bearer("of-report") else "UNAUTHENTICATED")
        assert services.transport.held.total == 0
        assert services.batcher.admitted == []


async def test_calls_without_a_token_leave_room_for_another_connection() -> None:
    refused, health = asyncio.Semaphore(0), Health(["ant"])
    guard = Guard(Tokens(), Refusals(Metrics(CollectorRegistry()).refused.labels))
    transport = GrpcTransport(
        [health.service()],
        max_request_bytes=1024,
        max_held_bytes=1 << 20,
        on_limit=refused.release,
        guard=guard,
        clock=lambda: 0.0,  # otherwise calls that wait for room would end, too, after 10 s
    )
    address = str(await transport.start(TcpAddress("127.0.0.1", 0)))
    alone = [("grpc.use_local_subchannel_pool", 1)]
    async with (
        grpc.aio.insecure_channel(address, options=alone) as channel,
        grpc.aio.insecure_channel(address, options=alone) as other,
        asyncio.timeout(60),
    ):
        # A stream holds 80 KiB. The 7th would hold 560 KiB of 1024, and leave 464.
        watches: list[Any] = [channel.stream_stream(f"{HEALTH}/Watch")() for _ in range(14)]  # they send no request
        for _ in range(14 - 6):
            await refused.acquire()
        assert await other.unary_unary(f"{HEALTH}/Check")(b"") == b"\x08\x02"  # NOT_SERVING
        for watch in watches:
            watch.cancel()
    await transport.stop(1)


def test_grpc_reads_no_requests_of_calls_that_need_no_token(tmp_path: Path) -> None:
    """They would take what gRPC may read at the same moment from the others."""

    def read_by_grpc(path: str, tokens: Iterable[Token] | None) -> bool:
        services = Services(tmp_path / f"{tokens is None}{path}", tokens)
        details: Any = SimpleNamespace(method=path, invocation_metadata=bearer("of-act"))
        handlers: list[Any] = [each.service(details) for each in services.transport.handlers()]
        (found,) = (handler for handler in handlers if handler)
        return not found.request_streaming

    tokens = [token("of-act", Role.ACT)]
    assert [read_by_grpc(path, tokens) for path in (f"{HEALTH}/Check", LIVE, ACT)] == [False, False, True]
    assert [read_by_grpc(path, None) for path in (f"{HEALTH}/Check", LIVE, ACT)] == [True, True, True]


async def test_calls_beyond_the_rate_are_refused_and_not_counted_against_it(tmp_path: Path) -> None:
    tokens = [token("slow", Role.DESCRIBE, calls_per_second=2), token("fast", Role.DESCRIBE)]
    async with started(Services(tmp_path, tokens)) as services:

        async def times(count: int, name: str) -> list[str]:
            return [(await outcome(services.call(LIST, metadata=bearer(name))))[0] for _ in range(count)]

        assert await times(3, "slow") == ["OK", "OK", "RESOURCE_EXHAUSTED"]
        call = services.call(LIST, metadata=bearer("slow"))
        assert await outcome(call) == LIMITED
        assert (await call.trailing_metadata())["grpc-retry-pushback-ms"] == "-1"
        assert await times(5, "fast") == ["OK"] * 5
        services.now_s += 0.5
        assert await times(2, "slow") == ["OK", "RESOURCE_EXHAUSTED"]
        assert services.count("refused_total", reason="rate_limit") == 3
        assert services.count("requests_total", method="List", policy="(none)", code="OK") == 8


async def test_each_message_of_a_stream_counts_and_the_stream_goes_on(tmp_path: Path) -> None:
    async with started(Services(tmp_path, [token("a", Role.ACT, calls_per_second=2)])) as services:
        call = services.channel.stream_stream(ACT_STREAM)(metadata=bearer("a"), timeout=30)
        failures: list[tuple[int, str]] = []
        for now_s in (100.0, 100.0, 100.0, 100.5, 100.5):
            services.now_s = now_s
            await call.write(GOOD)
            reply = pb.ActResponse.FromString(await call.read())
            assert reply.sequence == 7
            failures.append((reply.failure.code, reply.failure.reason))
        limited = (grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], "rate_limit")
        assert failures == [(0, ""), (0, ""), limited, (0, ""), limited]
        assert len(services.batcher.admitted) == 3
        await call.done_writing()
        assert await outcome(call) == ("OK", None)
        assert services.count("refused_total", reason="rate_limit") == 2


async def test_a_message_beyond_the_rate_is_refused_in_the_open_inference_protocol_too(tmp_path: Path) -> None:
    async with started(Services(tmp_path, [token("a", Role.ACT, calls_per_second=1)])) as services:
        call = services.channel.stream_stream(MODEL_STREAM)(metadata=bearer("a"), timeout=30)
        reasons: list[str] = []
        for _ in range(2):
            await call.write(oip.ModelInferRequest(model_name="point_u_maze", id="4").SerializeToString())
            reply = oip.ModelStreamInferResponse.FromString(await call.read())
            assert reply.infer_response.id == "4"
            reasons.append(reply.infer_response.parameters["kilolayer-reason"].string_param)
        assert reasons == ["invalid_request", "rate_limit"]
        call.cancel()


@pytest.mark.parametrize("change", ["removed", "without the role"])
async def test_a_stream_ends_at_its_next_message_when_its_token_is_not_accepted_any_more(
    tmp_path: Path, change: str
) -> None:
    path = tmp_path / "tokens.toml"
    text = '[tokens.{name}]\ntoken = "{secret}"\nroles = ["{role}"]\n'
    path.write_text(text.format(name="a", secret=secret("a"), role="act"))
    watch = TokenWatch(path)
    services = Services(tmp_path / "policies")
    services.tokens.replace([token("a", Role.ACT)])
    watch.tokens = services.tokens
    async with started(services):
        call = services.channel.stream_stream(ACT_STREAM)(metadata=bearer("a"), timeout=30)
        await call.write(GOOD)
        assert pb.ActResponse.FromString(await call.read()).sequence == 7
        name = "a" if change == "without the role" else "b"
        watch.take(text.format(name=name, secret=secret(name), role="report").encode())
        await call.write(GOOD)
        denied = ("PERMISSION_DENIED", "permission_denied")
        assert await outcome(call) == (denied if change == "without the role" else REFUSED)
        assert len(services.batcher.admitted) == 1
        cause = "role" if change == "without the role" else "removed"
        assert services.count("refused_total", reason=cause) == 1
        assert (await outcome(services.call(ACT, GOOD, bearer("a"))))[0] == (await call.code()).name


async def test_admitted_requests_are_answered_when_the_token_is_removed(tmp_path: Path) -> None:
    async with started(Services(tmp_path, [token("a", Role.ACT)])) as services:
        call = services.channel.stream_stream(ACT_STREAM)(metadata=bearer("a"), timeout=30)
        for _ in range(3):
            await call.write(GOOD)
        await services.batcher.until_admitted(3)
        services.tokens.replace([])
        await call.write(GOOD)
        for _ in range(3):
            assert pb.ActResponse.FromString(await call.read()).sequence == 7
        assert await outcome(call) == REFUSED
