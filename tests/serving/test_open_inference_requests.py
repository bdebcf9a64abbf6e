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
from prometheus_client import CollectorRegistry

from policy.bundle import Bundle
from serving.batcher import Batcher
from serving.calls import Calls
from serving.config import ServeConfig
from serving.engine import Kind
from serving.errors import InvalidRequestError, OverloadedError
from serving.metrics import Metrics
from serving.offers import Offer, Offers
from serving.open_inference import open_inference_pb2 as pb
from serving.open_inference.inference import Inferences
from serving.open_inference.service import OpenInferenceService
from serving.open_inference.tallies import Tallies
from serving.open_inference.tensors import decode_rows, decode_scheduling
from serving.waiting import Answer, Call
from tests.open_inference import actions, infer_request, method, stream, tensor
from tests.samples import policy_spec

SPEC = policy_spec()  # 4 values of state, 2 of goal
MODEL = SPEC.name
# Nothing computes here, so there is nothing to compute with.
BUNDLE = Bundle(
    Path("policies/1000"), 1000, SPEC, cast("Any", None), cast("Any", None), provenance={}, manifest_sha256=""
)
STATE, GOAL = np.arange(8, dtype=np.float32).reshape(2, 4), np.array([[10, 20]], np.float32)
STATE_BYTES, GOAL_BYTES = STATE.tobytes(), GOAL.tobytes()
REGION = {"shared_memory_region": pb.InferParameter(string_param="a")}


def request_of(inputs: list[Any], raw: list[bytes] | None = None, **fields: Any) -> pb.ModelInferRequest:
    return pb.ModelInferRequest(model_name=MODEL, inputs=inputs, raw_input_contents=raw or [], **fields)


def typed(**values: Any) -> pb.InferTensorContents:
    return pb.InferTensorContents(**values)


def test_rows_are_states_beside_their_goals() -> None:
    expected = [[0, 1, 2, 3, 10, 20], [4, 5, 6, 7, 10, 20]]
    assert decode_rows(infer_request(STATE, GOAL), SPEC, max_rows=2).tolist() == expected
    swapped = request_of([tensor("goal", [1, 2]), tensor("state", [2, 4])], [GOAL_BYTES, STATE_BYTES])
    assert decode_rows(swapped, SPEC, max_rows=2).tolist() == expected
    state, goal = typed(fp32_contents=range(8)), typed(fp32_contents=[10, 20])
    by_type = request_of([tensor("state", [2, 4], contents=state), tensor("goal", [1, 2], contents=goal)])
    assert decode_rows(by_type, SPEC, max_rows=2).tolist() == expected


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([], "state must have shape [rows, 4], not one of 0 dimensions"),
        ([4], "state must have shape [rows, 4], not one of 1 dimensions"),
        ([1] * 1000, "state must have shape [rows, 4], not one of 1000 dimensions"),
        ([2, 3], "state must have shape [rows, 4], not [2, 3]"),
        ([0, 4], "state must have shape [rows, 4], not [0, 4]"),
        ([-2, 4], "state must have shape [rows, 4], not [-2, 4]"),
        ([-2, -4], "state must have shape [rows, 4], not [-2, -4]"),
        ([2**63 - 1, 2**63 - 1], f"state must have shape [rows, 4], not [{2**63 - 1}, {2**63 - 1}]"),
        ([2**62, 4], f"one call may hold 8 rows, not {2**62}; split it into several"),  # 2**66 bytes, 0 modulo 2**64
        ([1, 4], "state of shape [1, 4] must hold 16 raw bytes, not 32"),
        ([3, 4], "state of shape [3, 4] must hold 48 raw bytes, not 32"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(shape: list[int], message: str) -> None:
    request = request_of([tensor("state", shape), tensor("goal", [1, 2])], [STATE_BYTES, GOAL_BYTES])
    with pytest.raises(InvalidRequestError) as refused:
        decode_rows(request, SPEC, max_rows=8)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (request_of([tensor("state", [2, 4])], [STATE_BYTES]), "the input goal is missing; there must be: state, goal"),
        (
            request_of([tensor("state", [2, 4]), tensor("aim\n", [1, 2])], [STATE_BYTES, GOAL_BYTES]),
            r"there is no input 'aim\n'; there are: state, goal",
        ),
        (request_of([tensor("state", [2, 4])] * 2, [STATE_BYTES] * 2), "the input state must be sent once, not again"),
        (
            request_of([tensor("state", [2, 4], datatype="FP64"), tensor("goal", [1, 2])], [STATE_BYTES, GOAL_BYTES]),
            "state must have datatype FP32, not 'FP64'",
        ),
        (infer_request(STATE, np.zeros((3, 2))), "goal must have 1 row, or 2 as state has, not 3"),
        (infer_request(STATE[:1], np.zeros((2, 2))), "goal must have 1 row, or 1 as state has, not 2"),
        (
            request_of([tensor("state", [2, 4]), tensor("goal", [1, 2])], [STATE_BYTES]),
            "raw_input_contents must hold one entry for each of 2 inputs, not 1",
        ),
        (
            request_of(
                [tensor("state", [2, 4], contents=typed(fp32_contents=range(8))), tensor("goal", [1, 2])],
                [STATE_BYTES, GOAL_BYTES],
            ),
            "state must not have contents beside raw_input_contents; send one of them",
        ),
        (
            request_of([tensor("state", [2, 4]), tensor("goal", [1, 2])]),
            "state of shape [2, 4] must hold 8 values in fp32_contents, or 32 bytes in raw_input_contents, not 0",
        ),
        (
            request_of([tensor("state", [1, 4], contents=typed(fp64_contents=range(4))), tensor("goal", [1, 2])]),
            "state of shape [1, 4] must hold 4 values in fp32_contents, or 16 bytes in raw_input_contents, not 0 and"
            " fp64_contents",
        ),
        (
            request_of([tensor("state", [2, 4], parameters=REGION), tensor("goal", [1, 2])]),
            "the parameter shared_memory_region of state is not supported; send and receive the values themselves",
        ),
        (
            infer_request(STATE, GOAL, outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name="energy")]),
            "there is no output 'energy'; there is: action",
        ),
        (
            infer_request(
                STATE,
                GOAL,
                outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name="action", parameters=REGION)],
            ),
            "the parameter shared_memory_region of action is not supported; send and receive the values themselves",
        ),
        (
            infer_request(STATE, np.array([[0, np.inf]])),
            "goal of row 0 (the first is 0) holds NaN or infinity; send finite values",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(request_: pb.ModelInferRequest, message: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        decode_rows(request_, SPEC, max_rows=8)
    assert str(refused.value) == message


def parameters(**values: Any) -> pb.ModelInferRequest:
    return pb.ModelInferRequest(parameters=values)


@pytest.mark.parametrize(
    ("level", "priority"),
    [(0, 0), (1, 3), (2, 2), (3, 1), (4, 0)],
)
def test_the_first_of_tritons_priorities_is_the_most_urgent_of_ours(level: int, priority: int) -> None:
    for parameter in (pb.InferParameter(uint64_param=level), pb.InferParameter(int64_param=level)):
        assert decode_scheduling(parameters(priority=parameter)) == (priority, 0)


def test_the_timeout_is_in_microseconds_and_other_parameters_are_ignored() -> None:
    timeout, other = pb.InferParameter(int64_param=2500), pb.InferParameter(string_param="x")
    assert decode_scheduling(parameters(timeout=timeout, sequence_id=other)) == (0, 2500)
    assert decode_scheduling(pb.ModelInferRequest()) == (0, 0)


@pytest.mark.parametrize(
    ("name", "parameter", "message"),
    [
        ("priority", {"int64_param": 5}, "priority must be 1, the most urgent, to 4, the usual one, as is 0; not 5"),
        ("priority", {"int64_param": -1}, "priority must be 1, the most urgent, to 4, the usual one, as is 0; not -1"),
        ("timeout", {"int64_param": -1}, "timeout must be microseconds, or 0 for none, not -1"),
        ("timeout", {"string_param": "1"}, "timeout must be an int64_param or a uint64_param, not string_param"),
        ("timeout", {}, "timeout must be an int64_param or a uint64_param, not empty"),
    ],
)
def test_parameters_out_of_range_are_refused(name: str, parameter: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        decode_scheduling(parameters(**{name: pb.InferParameter(**parameter)}))
    assert str(refused.value) == message


class HeldBatcher:
    """Admits everything and answers when told; or refuses."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.admitted: list[Call] = []
        self.timeouts_s: list[float | None] = []
        self.withdrawn: list[Call] = []

    def admit(self, rows: np.ndarray, *, priority: int, timeout_s: float | None) -> Call:
        if self.failure is not None:
            raise self.failure
        answer = asyncio.get_running_loop().create_future()
        call = Call(rows, kind=Kind.ACT, admitted_s=0, deadline_s=0, priority=priority, answer=answer)
        self.admitted.append(call)
        self.timeouts_s.append(timeout_s)
        return call

    def answer(self, results: np.ndarray) -> None:
        """Answer the call that was admitted last."""
        self.admitted[-1].answer.set_result(Answer(results, queue_s=0.125, compute_s=0.5, batch_rows=8))

    def withdraw(self, call: Call) -> None:
        self.withdrawn.append(call)


def offers_of(batcher: HeldBatcher) -> Offers:
    offers = Offers(frozenset({MODEL}), default=MODEL)
    offers.open({MODEL: Offer(BUNDLE, cast("Batcher", batcher))})
    return offers


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
    tallies = Tallies(metrics, wall_clock=lambda: 1700000000.125)
    batcher = HeldBatcher()
    offers = offers_of(batcher)
    calls = Calls(metrics, clock=lambda: next(moments))
    inferences = Inferences(offers, calls=calls, tallies=tallies, max_rows=8)
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
    statistics = tallies.encode(offers.find(MODEL, version=""))
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
async def served(batcher: HeldBatcher) -> AsyncGenerator[tuple[Any, CollectorRegistry]]:
    """A channel to the service around `batcher`, and what it counts."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    config = ServeConfig(policies=(BUNDLE.path,), max_call_rows=8)
    service = OpenInferenceService(offers_of(batcher), calls=Calls(metrics), metrics=metrics, config=config)
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
