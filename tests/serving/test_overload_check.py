"""Under overload, a real server rejects calls before it reads them. Its engine is held, so its queue stays full."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import grpc
import grpc.aio
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from kilolayer.v1 import policy_pb2 as pb
from serving.api.grpc_transport import GrpcTransport
from serving.api.handlers import RpcHandlers
from serving.api.policy_service import PolicyService
from serving.api.tracing import Tracing
from serving.batching.batcher import Batcher
from serving.batching.scheduler import BatchingPolicy
from serving.policies.registry import PolicyRegistry, ServedPolicy
from serving.policies.seen_range import SeenRange
from serving.sockets import TcpAddress
from serving.telemetry.metrics import Metrics
from tests.serving.batcher_bench import Engine, MakeEngine, WaitUntil
from tests.serving.fakes import BUNDLE, MODEL

ACT, SCORE, DESCRIBE = (f"/kilolayer.v1.Policy/{method}" for method in ("Act", "Score", "Describe"))
GOOD = pb.ActRequest(state=[0] * 4, goal=[0] * 2).SerializeToString()
NO_REQUEST = b"\xff"  # a server that reads it answers INVALID_ARGUMENT
READ_EVERY = 5


class Server:
    """A server whose queue holds two rows, behind a held engine."""

    def __init__(self, engine: Engine, tracing: Tracing | None) -> None:
        self.engine = engine
        self._collectors = CollectorRegistry()
        metrics = Metrics(self._collectors)
        batching = BatchingPolicy(max_queue_rows=2, max_queue_age_s=1.0, max_batch_delay_s=0.0, read_every=READ_EVERY)
        self.batcher = Batcher(engine, policy=batching, metrics=metrics.for_policy(MODEL), clock=engine.clock)
        policies = PolicyRegistry(frozenset({MODEL}), default=MODEL)
        policies.open([ServedPolicy(BUNDLE, self.batcher, SeenRange(BUNDLE.spec))])
        self.handlers = RpcHandlers(metrics, tracing=tracing, clock=engine.clock)
        service = PolicyService(policies, handlers=self.handlers, max_rows=8).service()
        self.transport = GrpcTransport([service], max_request_bytes=2**20, clock=engine.clock)
        self.channel: Any = None

    async def answer(self, raw: bytes, method: str = ACT) -> tuple[str, str | None]:
        """The status of a call, and its reason."""
        call = self.channel.unary_unary(method)(raw, timeout=30)
        code, trailers = await call.code(), await call.trailing_metadata()
        return code.name, trailers.get("kilolayer-reason")

    def count(self, name: str, **labels: str) -> float | None:
        return self._collectors.get_sample_value(f"kilolayer_{name}_total", labels)


@contextlib.asynccontextmanager
async def overloaded(
    engine: Engine, wait_until: WaitUntil, tracing: Tracing | None = None
) -> AsyncGenerator[tuple[Server, list[asyncio.Task[Any]]]]:
    """A server that has just rejected a call, and the three calls that it computes or queues."""
    server = Server(engine, tracing)
    engine.hold()
    address = await server.transport.start(TcpAddress("127.0.0.1", 0))
    try:
        async with grpc.aio.insecure_channel(str(address)) as server.channel:
            admitted = [asyncio.create_task(server.answer(GOOD))]
            await wait_until(lambda: len(engine.batches) == 1)
            assert await server.answer(NO_REQUEST) == ("INVALID_ARGUMENT", "invalid_request")  # no overload yet
            admitted += [asyncio.create_task(server.answer(GOOD)) for _ in range(2)]
            await wait_until(lambda: server.batcher.queue_rows == 2)
            assert await server.answer(GOOD) == ("RESOURCE_EXHAUSTED", "queue_full")
            yield server, admitted
            engine.release()
            await asyncio.gather(*admitted)
    finally:
        engine.release()
        await server.batcher.drain(grace_s=5)
        await server.transport.stop(1)


async def test_a_call_is_rejected_unread_with_the_usual_reason_and_counted_by_it(
    make_engine: MakeEngine, wait_until: WaitUntil
) -> None:
    async with overloaded(make_engine(), wait_until) as (server, _):
        call = server.channel.unary_unary(ACT)(NO_REQUEST, timeout=30)
        assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await call.details() == ("the queue is full: 2 of 2 rows wait")
        trailers = await call.trailing_metadata()
        assert (trailers["kilolayer-reason"], trailers["grpc-retry-pushback-ms"]) == ("queue_full", "-1")
        assert server.count("rejected", policy="(unread)", reason="queue_full") == 1
        assert server.count("requests", method="Act", policy="(unread)", code="RESOURCE_EXHAUSTED") == 1
        assert server.count("rejected", policy=MODEL, reason="queue_full") == 1  # the call that was read
        assert await server.answer(NO_REQUEST, SCORE) == ("RESOURCE_EXHAUSTED", "queue_full")
        assert await server.answer(b"", DESCRIBE) == ("OK", None)  # it computes nothing


async def test_a_message_of_any_size_is_not_read(make_engine: MakeEngine, wait_until: WaitUntil) -> None:
    async with overloaded(make_engine(), wait_until) as (server, _):
        assert await server.answer(NO_REQUEST * 2**21) == ("RESOURCE_EXHAUSTED", "queue_full")


async def test_some_calls_are_read_in_any_case(make_engine: MakeEngine, wait_until: WaitUntil) -> None:
    async with overloaded(make_engine(), wait_until) as (server, _):
        found = [(await server.answer(NO_REQUEST))[0] for _ in range(2 * READ_EVERY)]
    assert found == (["RESOURCE_EXHAUSTED"] * (READ_EVERY - 1) + ["INVALID_ARGUMENT"]) * 2


async def test_a_call_that_may_be_admitted_is_read_and_answered(make_engine: MakeEngine, wait_until: WaitUntil) -> None:
    async with overloaded(make_engine(), wait_until) as (server, admitted):
        server.engine.release()
        assert await asyncio.gather(*admitted) == [("OK", None)] * 3
        assert server.batcher.is_overloaded
        assert await server.answer(GOOD) == ("OK", None)
        assert await server.answer(NO_REQUEST) == ("INVALID_ARGUMENT", "invalid_request")
        empty = server.channel.stream_unary(ACT)(iter(()), timeout=30)  # a caller that sends no request
        assert await empty.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_server_that_shuts_down_says_so_instead(make_engine: MakeEngine, wait_until: WaitUntil) -> None:
    async with overloaded(make_engine(), wait_until) as (server, _):
        server.handlers.begin_draining()
        server.handlers.refuse_held()
        assert await server.answer(GOOD) == ("UNAVAILABLE", "draining")


async def test_a_call_that_is_rejected_unread_has_a_span(make_engine: MakeEngine, wait_until: WaitUntil) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with overloaded(make_engine(), wait_until, Tracing(provider)) as (server, _):
        exporter.clear()
        await server.answer(NO_REQUEST)
        (span,) = exporter.get_finished_spans()
    assert span.name == "kilolayer.v1.Policy/Act"
    assert span.attributes is not None
    assert (span.attributes["kilolayer.policy"], span.attributes["rpc.grpc.status_code"]) == ("(unread)", 8)
