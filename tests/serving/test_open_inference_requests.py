"""Requests of the Open Inference Protocol on their way to the batcher and back, without a policy that computes."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
import numpy as np
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from policy.bundle import Bundle
from serving.api.handlers import Calls
from serving.api.open_inference import open_inference_pb2 as pb
from serving.api.open_inference.infer_request import InferRequests
from serving.api.open_inference.service import OpenInferenceService
from serving.api.open_inference.statistics import StatisticsByVersion
from serving.api.tracing import Tracing
from serving.batching.batcher import Batcher
from serving.batching.queue import InferenceResult, QueuedRequest
from serving.config import ServeConfig
from serving.engine.engine import Kind
from serving.errors import InvalidRequestError, OverloadedError
from serving.policies.registry import PolicyRegistry, ServedPolicy
from serving.telemetry.metrics import Metrics
from tests.open_inference import SERVICE, actions, infer_request, method, stream
from tests.samples import policy_spec

SPEC = policy_spec()
MODEL = SPEC.name
# Nothing computes here, so there is nothing to compute with.
BUNDLE = Bundle(
    Path("policies/1000"), 1000, SPEC, cast("Any", None), cast("Any", None), provenance={}, manifest_sha256=""
)
STATE, GOAL = np.arange(8, dtype=np.float32).reshape(2, 4), np.array([[10, 20]], np.float32)


class HeldBatcher:
    """Admits everything and answers when told; or refuses."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.admitted: list[QueuedRequest] = []
        self.timeouts_s: list[float | None] = []
        self.withdrawn: list[QueuedRequest] = []

    def crowded(self) -> bool:
        return False

    def admit(self, rows: np.ndarray, *, priority: int, timeout_s: float | None) -> QueuedRequest:
        if self.failure is not None:
            raise self.failure
        answer = asyncio.get_running_loop().create_future()
        call = QueuedRequest(rows, kind=Kind.ACT, queued_s=0, deadline_s=0, priority=priority, result=answer)
        self.admitted.append(call)
        self.timeouts_s.append(timeout_s)
        return call

    def answer(self, results: np.ndarray) -> None:
        """Answer the call that was admitted last."""
        self.admitted[-1].result.set_result(InferenceResult(results, queue_s=0.125, compute_s=0.5, batch_rows=8))

    def withdraw(self, call: QueuedRequest) -> None:
        self.withdrawn.append(call)


class AnsweringBatcher(HeldBatcher):
    """Answers at once."""

    def admit(self, rows: np.ndarray, *, priority: int, timeout_s: float | None) -> QueuedRequest:
        call = super().admit(rows, priority=priority, timeout_s=timeout_s)
        self.answer(np.zeros((len(rows), 2), np.float32))
        return call


def offers_of(batcher: HeldBatcher) -> PolicyRegistry:
    policies = PolicyRegistry(frozenset({MODEL}), default=MODEL)
    policies.open({MODEL: ServedPolicy(BUNDLE, cast("Batcher", batcher))})
    return policies


class Unhurried:
    """A call's context without a deadline."""

    def time_remaining(self) -> None:
        return None


def test_durations_add_up_by_request() -> None:
    #               came  decode from..to  computed  written  over     came  decode  failed
    moments = iter([10.0, 10.25, 10.5, 12.0, 12.5, 13.0, 20.0, 20.25, 24.0])
    metrics = Metrics(CollectorRegistry())
    metrics.rows.labels(MODEL).inc(7)
    metrics.batches.labels(MODEL).inc(3)
    tallies = StatisticsByVersion(metrics, wall_clock=lambda: 1700000000.125)
    batcher = HeldBatcher()
    policies = offers_of(batcher)
    calls = Calls(metrics, clock=lambda: next(moments))
    inferences = InferRequests(policies, calls=calls, tallies=tallies, max_rows=8)
    context = cast("Any", Unhurried())

    async def test() -> pb.ModelInferResponse:
        arrival = inferences.parse(infer_request(STATE, GOAL, id="b").SerializeToString())
        inference = inferences.admit(arrival, context, write=pb.ModelInferResponse.SerializeToString)
        batcher.answer(np.array([[1, 2], [3, 4]], np.float32))
        reply = pb.ModelInferResponse.FromString(await inference.reply())
        bad = inferences.parse(infer_request(STATE[:, :3], GOAL).SerializeToString())
        with pytest.raises(InvalidRequestError):
            inferences.admit(bad, context, write=pb.ModelInferResponse.SerializeToString)
        return reply

    reply = asyncio.run(test())
    assert (actions(reply).tolist(), reply.id) == ([[1, 2], [3, 4]], "b")
    statistics = tallies.encode(policies.find(MODEL, version=""))
    assert (statistics.inference_count, statistics.execution_count) == (7, 3)
    assert statistics.last_inference == 1700000000125

    def once(seconds: float) -> pb.StatisticDuration:
        return pb.StatisticDuration(count=1, ns=round(seconds * 1e9))

    assert statistics.inference_stats == pb.InferStatistics(
        success=once(3),
        fail=once(4),
        queue=once(0.125),
        compute_input=once(0.25),
        compute_infer=once(0.5),
        compute_output=once(0.5),
    )


@contextlib.asynccontextmanager
async def served(batcher: HeldBatcher, tracing: Tracing | None = None) -> AsyncGenerator[tuple[Any, CollectorRegistry]]:
    """A channel to the service around `batcher`, and what it counts."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    config = ServeConfig(policies=(BUNDLE.path,), max_call_rows=8)
    calls = Calls(metrics, tracing=tracing)
    service = OpenInferenceService(offers_of(batcher), calls=calls, metrics=metrics, config=config)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((service.handlers(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel, registry
    await server.stop(1)


def failures(channel: Any) -> Awaitable[Any]:
    return method(channel, "ModelStatistics")(pb.ModelStatisticsRequest(name=MODEL), timeout=10)


def test_priority_and_timeout_reach_the_batcher(wait_until: Callable[[Callable[[], bool]], Any]) -> None:
    async def test() -> None:
        batcher = HeldBatcher()
        async with served(batcher) as (channel, _):
            urgent, timeout = pb.InferParameter(uint64_param=1), pb.InferParameter(int64_param=2500)
            request = infer_request(STATE, GOAL, parameters={"priority": urgent, "timeout": timeout})
            call = method(channel, "ModelInfer")(request, timeout=10)
            await wait_until(lambda: len(batcher.admitted) == 1)
            assert (batcher.admitted[0].priority, batcher.timeouts_s) == (3, [0.0025])
            batcher.answer(np.zeros((2, 2), np.float32))
            await call

    asyncio.run(test())


def test_shedding_is_told_as_act_tells_it() -> None:
    async def test() -> None:
        async with served(HeldBatcher(OverloadedError("full"))) as (channel, _):
            with pytest.raises(grpc.aio.AioRpcError, match="full") as shed:
                await method(channel, "ModelInfer")(infer_request(STATE, GOAL), timeout=10)
            assert shed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert shed.value.trailing_metadata().get("grpc-retry-pushback-ms") == "-1"
            (reply,) = [each async for each in stream(channel)(iter([infer_request(STATE, GOAL, id="c")]), timeout=10)]
            assert (reply.error_message, reply.infer_response.id) == ("full", "c")
            assert (await failures(channel)).model_stats[0].inference_stats.fail.count == 2

    asyncio.run(test())


def test_nothing_foreign_leaks() -> None:
    async def test() -> None:
        async with served(HeldBatcher(RuntimeError("a secret"))) as (channel, _):
            text = "the server failed on this call; its log says why"
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await method(channel, "ModelInfer")(infer_request(STATE, GOAL), timeout=10)
            assert (failed.value.code(), failed.value.details()) == (grpc.StatusCode.INTERNAL, text)
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await stream(channel)(iter([infer_request(STATE, GOAL)]), timeout=10).read()
            assert (ended.value.code(), ended.value.details()) == (grpc.StatusCode.INTERNAL, text)

    asyncio.run(test())


@pytest.mark.parametrize("name", ["ModelInfer", "ModelStreamInfer"])
def test_a_caller_that_leaves_takes_its_request_along(
    name: str, wait_until: Callable[[Callable[[], bool]], Any]
) -> None:
    async def test() -> None:
        batcher = HeldBatcher()
        async with served(batcher) as (channel, registry):
            request = infer_request(STATE, GOAL)
            if name == "ModelInfer":
                call = method(channel, name)(request, timeout=30)
            else:
                call = stream(channel)(timeout=30)
                await call.write(request)
            await wait_until(lambda: len(batcher.admitted) == 1)
            call.cancel()
            await wait_until(lambda: batcher.withdrawn == batcher.admitted)
            labels = {"method": name, "policy": MODEL, "code": "CANCELLED"}
            await wait_until(lambda: registry.get_sample_value("kilolayer_requests_total", labels) == 1)
            statistics = (await failures(channel)).model_stats[0].inference_stats
            assert (statistics.fail.count, statistics.success.count) == (1, 0)

    asyncio.run(test())


def test_spans_bear_the_name_of_the_service() -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    async def test() -> None:
        batcher = AnsweringBatcher()
        async with served(batcher, Tracing(provider)) as (channel, _):
            await method(channel, "ModelInfer")(infer_request(STATE, GOAL), timeout=10)
            replies = [each async for each in stream(channel)(iter([infer_request(STATE, GOAL)]), timeout=10)]
            assert [reply.error_message for reply in replies] == [""]

    asyncio.run(test())
    call, whole = exporter.get_finished_spans()
    assert (call.name, whole.name) == (f"{SERVICE[1:]}/ModelInfer", f"{SERVICE[1:]}/ModelStreamInfer")
    assert call.attributes is not None
    assert call.attributes["rpc.service"] == "inference.GRPCInferenceService"
    assert call.attributes["kilolayer.queue_us"] == 125_000
    assert call.attributes["kilolayer.batch_rows"] == 8
