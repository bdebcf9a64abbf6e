"""Requests of the Open Inference Protocol on their way to the batcher and back; nothing computes, and no transport."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import Message
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from policy.spec import PolicySpec
from serving.api.handlers import RpcHandlers
from serving.api.observers import Observers
from serving.api.open_inference import open_inference_pb2 as pb
from serving.api.open_inference.infer_request import InferRequests
from serving.api.open_inference.service import SERVICE_NAME, OpenInferenceService
from serving.api.open_inference.statistics import StatisticsByVersion
from serving.api.rpc import RpcContext
from serving.api.tracing import Tracing
from serving.config import ServeConfig
from serving.errors import InvalidRequestError, OverloadedError, Reason, UnexpectedError
from serving.telemetry.metrics import Metrics
from tests.open_inference import actions, infer_request
from tests.samples import policy_spec
from tests.serving.fakes import BUNDLE, MODEL, AnsweringBatcher, FakeBatcher, policies_of, turn_loop

STATE, GOAL = np.arange(8, dtype=np.float32).reshape(2, 4), np.array([[10, 20]], np.float32)
GOOD = infer_request(STATE, GOAL, id="c")


class Service:
    """The service around `batcher`."""

    def __init__(self, batcher: FakeBatcher, *, tracing: Tracing | None = None, spec: PolicySpec = BUNDLE.spec) -> None:
        self.collectors = CollectorRegistry()
        metrics = Metrics(self.collectors)
        handlers = RpcHandlers(metrics, tracing=tracing)
        config = ServeConfig(policies=(BUNDLE.path,), max_call_rows=8)
        policies = policies_of(batcher, spec)
        service = OpenInferenceService(policies, handlers=handlers, metrics=metrics, config=config)
        self._service = service.service()

    async def infer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        context = RpcContext(f"/{SERVICE_NAME}/ModelInfer")
        return pb.ModelInferResponse.FromString(
            await self._service.unary["ModelInfer"](request.SerializeToString(), context)
        )

    async def about(self, method: str, request: Message) -> bytes:
        return await self._service.unary[method](request.SerializeToString(), RpcContext(f"/{SERVICE_NAME}/{method}"))

    def stream(self, *requests: pb.ModelInferRequest) -> AsyncGenerator[bytes]:
        async def each() -> AsyncIterator[bytes]:
            for request in requests:
                yield request.SerializeToString()

        return self._service.streams["ModelStreamInfer"](each(), RpcContext(f"/{SERVICE_NAME}/ModelStreamInfer"))

    async def outcomes(self) -> tuple[int, int]:
        """How many requests succeeded and failed, by the protocol's own statistics."""
        request = pb.ModelStatisticsRequest(name=MODEL).SerializeToString()
        raw = await self._service.unary["ModelStatistics"](request, RpcContext(f"/{SERVICE_NAME}/ModelStatistics"))
        statistics = pb.ModelStatisticsResponse.FromString(raw).model_stats[0].inference_stats
        return statistics.success.count, statistics.fail.count


async def test_durations_add_up_by_request() -> None:
    #               arrived  decode from..to  computed  written  over  arrived  decode  failed
    moments = iter([10.0, 10.25, 10.5, 12.0, 12.5, 13.0, 20.0, 20.25, 24.0])
    metrics = Metrics(CollectorRegistry())
    metrics.rows.labels(MODEL).inc(7)
    metrics.batches.labels(MODEL).inc(3)
    by_version = StatisticsByVersion(metrics, wall_clock=lambda: 1700000000.125)
    batcher = FakeBatcher()
    policies = policies_of(batcher)
    requests = InferRequests(
        policies,
        statistics=by_version,
        max_rows=8,
        clock=lambda: next(moments),
        serialize=pb.ModelInferResponse.SerializeToString,
        observers=Observers(policies),
    )
    context = RpcContext("/any", connection="ipv4:10.0.0.7:1")
    pending = requests.admit(requests.parse(infer_request(STATE, GOAL, id="b").SerializeToString()), context)
    batcher.answer(np.array([[1, 2], [3, 4]], np.float32))
    reply = pb.ModelInferResponse.FromString(await pending.reply())
    bad = requests.parse(infer_request(STATE[:, :3], GOAL).SerializeToString())
    with pytest.raises(InvalidRequestError):
        requests.admit(bad, context)
    assert (actions(reply).tolist(), reply.id) == ([[1, 2], [3, 4]], "b")
    assert batcher.admitted[0].connection == "ipv4:10.0.0.7:1"
    statistics = by_version.encode(policies.find(MODEL, version=""))
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


async def test_priority_and_timeout_reach_the_batcher() -> None:
    batcher = AnsweringBatcher()
    urgent, timeout = pb.InferParameter(uint64_param=1), pb.InferParameter(int64_param=2500)
    await Service(batcher).infer(infer_request(STATE, GOAL, parameters={"priority": urgent, "timeout": timeout}))
    assert (batcher.admitted[0].priority, batcher.timeouts_s) == (3, [0.0025])


async def test_a_rejection_is_the_same_error_as_for_act_and_a_reply_within_a_stream() -> None:
    service = Service(FakeBatcher(OverloadedError("full", reason=Reason.QUEUE_AGE)))
    with pytest.raises(OverloadedError, match="^full$"):
        await service.infer(GOOD)
    (raw,) = [raw async for raw in service.stream(GOOD)]
    reply = pb.ModelStreamInferResponse.FromString(raw)
    assert (reply.error_message, reply.infer_response.id) == ("full", "c")
    assert reply.infer_response.parameters["kilolayer-reason"].string_param == "queue_age"
    assert await service.outcomes() == (0, 2)


async def test_no_foreign_error_leaves_a_method() -> None:
    service = Service(FakeBatcher(RuntimeError("a secret")))
    with pytest.raises(UnexpectedError):
        await service.infer(GOOD)
    with pytest.raises(UnexpectedError):
        await anext(service.stream(GOOD))


@pytest.mark.parametrize("name", ["ModelInfer", "ModelStreamInfer"])
async def test_a_caller_that_leaves_takes_its_request_along(name: str) -> None:
    batcher = FakeBatcher()
    service = Service(batcher)
    reply: Any = service.infer(GOOD) if name == "ModelInfer" else anext(service.stream(GOOD))
    waiting = asyncio.ensure_future(reply)
    await batcher.until_admitted(1)
    await turn_loop()  # until it waits for the result
    waiting.cancel()
    await asyncio.wait({waiting})
    assert waiting.cancelled()
    assert batcher.withdrawn == batcher.admitted
    labels = {"method": name, "policy": MODEL, "code": "CANCELLED"}
    assert service.collectors.get_sample_value("kilolayer_requests_total", labels) == 1
    assert await service.outcomes() == (0, 1)


async def test_spans_have_the_name_of_the_service() -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    service = Service(AnsweringBatcher(), tracing=Tracing(provider))
    await asyncio.create_task(service.infer(GOOD))  # each call has a task of its own
    (raw,) = [raw async for raw in service.stream(GOOD)]
    assert pb.ModelStreamInferResponse.FromString(raw).error_message == ""
    call, whole = exporter.get_finished_spans()
    assert (call.name, whole.name) == (f"{SERVICE_NAME}/ModelInfer", f"{SERVICE_NAME}/ModelStreamInfer")
    assert call.attributes is not None
    assert call.attributes["rpc.service"] == "inference.GRPCInferenceService"
    assert call.attributes["kilolayer.queue_us"] == 125_000
    assert call.attributes["kilolayer.batch_rows"] == 8


async def test_the_shapes_of_chunks_are_those_of_the_specification() -> None:
    batcher = FakeBatcher()
    service = Service(batcher, spec=policy_spec(action_chunk=3))
    about = pb.ModelMetadataResponse.FromString(
        await service.about("ModelMetadata", pb.ModelMetadataRequest(name=MODEL))
    )
    assert [list(tensor.shape) for tensor in (*about.inputs, *about.outputs)] == [[-1, 4], [-1, 2], [-1, 6]]
    raw = await service.about("ModelConfig", pb.ModelConfigRequest(name=MODEL))
    assert [list(output.dims) for output in pb.ModelConfigResponse.FromString(raw).config.output] == [[6]]
    answering = asyncio.create_task(service.infer(GOOD))
    await batcher.until_admitted(1)
    chunks = np.arange(12, dtype=np.float32).reshape(2, 6)
    batcher.answer(chunks)
    reply = await answering
    assert list(reply.outputs[0].shape) == [2, 6]
    assert actions(reply).tolist() == chunks.tolist()


async def test_a_robot_may_be_named() -> None:
    named = infer_request(STATE, GOAL, parameters={"robot_id": pb.InferParameter(string_param="robot 7")})
    assert (await Service(AnsweringBatcher()).infer(named)).outputs
    named.parameters["robot_id"].string_param = "x" * 129
    with pytest.raises(InvalidRequestError, match="robot_id must have at most 128 bytes in UTF-8, got 129"):
        await Service(AnsweringBatcher()).infer(named)
