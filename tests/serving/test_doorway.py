"""The doorway over real gRPC, in front of a batcher that says whether there is a crowd."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import cast

import grpc
import grpc.aio
import numpy as np
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from kilolayer.v1 import policy_pb2 as pb
from policy.bundle import Bundle
from serving.api.handlers import Calls
from serving.api.policy_service import PolicyService
from serving.api.tracing import Tracing
from serving.batching.admission import Rejection
from serving.batching.batcher import Batcher
from serving.batching.queue import InferenceResult
from serving.engine.engine import Kind
from serving.policies.registry import PolicyRegistry, ServedPolicy
from serving.telemetry.metrics import Metrics

ACT, DESCRIBE = "/kilolayer.v1.Policy/Act", "/kilolayer.v1.Policy/Describe"
GOOD = pb.ActRequest(state=[0] * 4, goal=[0] * 2).SerializeToString()
NO_REQUEST = b"\xff"  # whoever reads it answers INVALID_ARGUMENT


class Crowd:
    """Stands for a batcher that sheds what has less than a number of seconds left, and answers the rest with zeros."""

    def __init__(self, least_s: float) -> None:
        self._least_s = least_s
        self.asked: list[Kind] = []

    def crowded(self) -> bool:
        return self._least_s > 0

    def judge_unread(self, kind: Kind, *, timeout_s: float) -> Rejection | None:
        self.asked.append(kind)
        return Rejection("deadline_too_short", "too late") if timeout_s < self._least_s else None

    async def submit(self, rows: np.ndarray, **_options: object) -> InferenceResult:
        return InferenceResult(np.zeros((len(rows), 2), np.float32), queue_s=0, compute_s=0, batch_rows=len(rows))


class Server:
    """What a test needs of one that runs."""

    def __init__(self, channel: grpc.aio.Channel, calls: Calls, registry: CollectorRegistry) -> None:
        self.calls = calls
        self.channel = channel
        self._registry = registry

    async def call(self, method: str, request: bytes, *, timeout_s: float) -> grpc.aio.AioRpcError | bytes:
        try:
            return await self.channel.unary_unary(method)(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            return error

    async def code(self, request: bytes, *, timeout_s: float) -> grpc.StatusCode:
        """What Act answers."""
        answer = await self.call(ACT, request, timeout_s=timeout_s)
        return grpc.StatusCode.OK if isinstance(answer, bytes) else answer.code()

    def sample(self, name: str, **labels: str) -> float | None:
        return self._registry.get_sample_value(f"kilolayer_{name}", labels)


@contextlib.asynccontextmanager
async def served(bundle: Bundle, *, tracing: Tracing | None = None, **crowds: Crowd) -> AsyncGenerator[Server]:
    """A server of one policy for each of `crowds`."""
    registry = CollectorRegistry()
    calls = Calls(Metrics(registry), tracing=tracing)
    policies = PolicyRegistry(frozenset(crowds), default=next(iter(crowds)))
    policies.open({name: ServedPolicy(bundle, cast("Batcher", crowd)) for name, crowd in crowds.items()})
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((PolicyService(policies, calls=calls, max_rows=8).handlers(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Server(channel, calls, registry)
    await server.stop(1)


def test_in_a_crowd_a_call_is_shed_unread_by_name_and_counted_by_reason(served_bundle: Bundle) -> None:
    async def test() -> None:
        async with served(served_bundle, p=Crowd(60)) as server:
            error = await server.call(ACT, NO_REQUEST, timeout_s=50)
            assert isinstance(error, grpc.aio.AioRpcError)
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert error.details() == "too late; send the next observation rather than this one again, and less often"
            assert error.trailing_metadata().get("grpc-retry-pushback-ms") == "-1"
            assert server.sample("rejected_total", policy="(unread)", reason="deadline_too_short") == 1
            outcome = {"method": "Act", "policy": "(unread)", "code": "RESOURCE_EXHAUSTED"}
            assert server.sample("requests_total", **outcome) == 1

    asyncio.run(test())


@pytest.mark.parametrize("crowd", [Crowd(60), Crowd(0)], ids=["crowded", "not crowded"])
def test_a_call_that_may_be_let_in_is_read_and_answered(served_bundle: Bundle, crowd: Crowd) -> None:
    async def test() -> None:
        async with served(served_bundle, p=crowd) as server:
            reply = await server.call(ACT, GOOD, timeout_s=70)
            assert isinstance(reply, bytes)
            assert pb.ActResponse.FromString(reply).action == [0, 0]
            assert await server.code(NO_REQUEST, timeout_s=70) is grpc.StatusCode.INVALID_ARGUMENT
            assert crowd.asked == [Kind.ACT] * 2 * crowd.crowded()

    asyncio.run(test())


def test_a_call_of_any_size_is_shed_unread(served_bundle: Bundle) -> None:
    async def test() -> None:
        async with served(served_bundle, p=Crowd(60)) as server:
            assert await server.code(NO_REQUEST * 3_000_000, timeout_s=50) is grpc.StatusCode.RESOURCE_EXHAUSTED

    asyncio.run(test())


def test_a_caller_that_sends_nothing_is_answered(served_bundle: Bundle) -> None:
    async def test() -> None:
        async with served(served_bundle, p=Crowd(60)) as server:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await server.channel.stream_unary(ACT)(iter(()), timeout=70)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    asyncio.run(test())


def test_methods_that_compute_nothing_are_answered_in_any_crowd(served_bundle: Bundle) -> None:
    async def test() -> None:
        async with served(served_bundle, p=Crowd(60)) as server:
            assert isinstance(await server.call(DESCRIBE, b"", timeout_s=50), bytes)

    asyncio.run(test())


@pytest.mark.parametrize("other_s", [0, 40])
def test_a_call_is_read_if_any_policy_may_let_it_in(served_bundle: Bundle, other_s: float) -> None:
    async def test() -> None:
        async with served(served_bundle, p=Crowd(60), q=Crowd(other_s)) as server:
            assert await server.code(GOOD, timeout_s=50) is grpc.StatusCode.OK
            if other_s:
                assert await server.code(GOOD, timeout_s=30) is grpc.StatusCode.RESOURCE_EXHAUSTED

    asyncio.run(test())


def test_a_call_that_is_shed_unread_has_a_span(served_bundle: Bundle) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    async def test() -> None:
        async with served(served_bundle, tracing=Tracing(provider), p=Crowd(60)) as server:
            assert await server.code(GOOD, timeout_s=50) is grpc.StatusCode.RESOURCE_EXHAUSTED

    asyncio.run(test())
    (span,) = exporter.get_finished_spans()
    assert span.name == "kilolayer.v1.Policy/Act"
    assert span.attributes is not None
    assert (span.attributes["kilolayer.policy"], span.attributes["rpc.grpc.status_code"]) == ("(unread)", 8)


def test_a_closing_server_sheds_nobody_unread(served_bundle: Bundle) -> None:
    async def test() -> None:
        async with served(served_bundle, p=Crowd(60)) as server:
            server.calls.close()
            server.calls.let_go()
            assert await server.code(GOOD, timeout_s=50) is grpc.StatusCode.UNAVAILABLE

    asyncio.run(test())
