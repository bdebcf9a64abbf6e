"""Requests with values far from those of training: flagged, refused, or to blame for a result that is not finite."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from prometheus_client import CollectorRegistry

import kilolayer
from kilolayer.v1 import policy_pb2 as pb
from policy import bundle
from serving.api.handlers import RpcHandlers
from serving.api.open_inference import open_inference_pb2 as oip
from serving.api.open_inference.service import OpenInferenceService
from serving.api.policy_service import PolicyService
from serving.api.range_check import RangeCheck
from serving.api.rpc import RpcContext
from serving.batching.batcher import Batcher
from serving.batching.scheduler import BatchingPolicy
from serving.config import ServeConfig
from serving.engine.engine import Kind
from serving.errors import (
    ExtremeInputError,
    InvalidRequestError,
    NonFiniteActionError,
    OutOfRangeError,
    OverloadedError,
    Reason,
)
from serving.server import load
from serving.telemetry.metrics import Metrics
from tests.open_inference import infer_request, method
from tests.parameters import fresh_params
from tests.samples import policy_spec
from tests.serving.conftest import FakeEngine
from tests.serving.fakes import AnsweringBatcher, FakeBatcher, policies_of
from tests.serving.in_process import Running, served

SEEN: dict[str, Any] = {
    "seen_mean": (0.0,) * 4,
    "seen_std": (1.0,) * 4,
    "seen_low": (-5.0,) * 4,
    "seen_high": (5.0,) * 4,
}
SPEC = policy_spec(**SEEN)
NEAR, FAR = [0.0, 0, 0, 10], [0.0, 0, 0, 10.5]  # the bounds are -10 and 10
GOAL = [1.0, 1]
CONTEXT = RpcContext("/any")
MODES = [
    {},
    {"mode": "ACT_MODE_STOCHASTIC", "seed": 3},
    {"mode": "ACT_MODE_BEST_OF", "candidates": 2},
]
REFUSED = (
    "vy [m/s] of row 0 (the first is 0) is 10.5; the range that training saw, with 5 standard deviations on each side,"
    " is -10 to 10"
)


class Service:
    """Both protocols around `batcher`, for a policy that saw states from -5 to 5."""

    def __init__(self, batcher: FakeBatcher, *, refuses: bool = False) -> None:
        self.registry = CollectorRegistry()
        metrics = Metrics(self.registry)
        handlers = RpcHandlers(metrics, clock=lambda: 0.0)
        policies, check = policies_of(batcher, SPEC), RangeCheck(metrics, refuses=refuses)
        ours = PolicyService(policies, handlers=handlers, max_rows=8, range_check=check).service()
        config = ServeConfig(policies=(Path("policies"),), max_call_rows=8)
        open_inference = OpenInferenceService(
            policies, handlers=handlers, metrics=metrics, config=config, range_check=check
        ).service()
        self.unary = {**ours.unary, **open_inference.unary}
        self.streams = {**ours.streams, **open_inference.streams}

    async def call(self, name: str, request: Message) -> bytes:
        return await self.unary[name](request.SerializeToString(), CONTEXT)

    async def stream(self, name: str, *requests: Message) -> list[bytes]:
        async def each() -> AsyncIterator[bytes]:
            for request in requests:
                yield request.SerializeToString()

        return [reply async for reply in self.streams[name](each(), CONTEXT)]

    @property
    def counted(self) -> float:
        return self.registry.get_sample_value("kilolayer_out_of_range_total", {"policy": SPEC.name}) or 0


def act(*states: list[float], **fields: Any) -> pb.ActRequest:
    return pb.ActRequest(state=np.ravel(states), goal=GOAL, **fields)


def score(state: list[float]) -> pb.ScoreRequest:
    return pb.ScoreRequest(state=state, action=[0, 0], goal=GOAL)


def infer(state: list[float]) -> oip.ModelInferRequest:
    return infer_request(np.array([state]), np.array([GOAL]))


class BestOfBatcher(FakeBatcher):
    """Answers each request immediately with zeros, as wide as those of its kind."""

    def admit(self, rows: np.ndarray, *, kind: Kind = Kind.ACT, **options: Any) -> Any:
        queued = super().admit(rows, kind=kind, **options)
        self.answer(np.zeros((len(rows), {Kind.BEST_OF: 3, Kind.SCORE: 1}.get(kind, 2)), np.float32))
        return queued


@pytest.mark.parametrize("fields", MODES)
async def test_a_reply_says_whether_one_of_its_states_is_out_of_range(fields: dict[str, Any]) -> None:
    service = Service(BestOfBatcher())
    for states, expected in (([NEAR], False), ([FAR], True), ([NEAR, NEAR], False), ([NEAR, FAR, NEAR], True)):
        reply = pb.ActResponse.FromString(await service.call("Act", act(*states, **fields)))
        assert reply.out_of_range is expected
        assert len(reply.action) == 2 * len(states)
    assert service.counted == 2


@pytest.mark.parametrize("fields", MODES)
async def test_a_request_out_of_range_is_refused_before_it_is_queued(fields: dict[str, Any]) -> None:
    batcher = BestOfBatcher()
    service = Service(batcher, refuses=True)
    with pytest.raises(OutOfRangeError) as refused:
        await service.call("Act", act(FAR, **fields))
    assert str(refused.value) == REFUSED
    assert (refused.value.status.name, refused.value.reason) == ("INVALID_ARGUMENT", "out_of_range")
    assert (batcher.admitted, service.counted) == ([], 1)
    assert not pb.ActResponse.FromString(await service.call("Act", act(NEAR, **fields))).out_of_range
    assert service.counted == 1


async def test_a_score_is_counted_or_refused() -> None:
    flagging, refusing = Service(BestOfBatcher()), Service(BestOfBatcher(), refuses=True)
    assert list(pb.ScoreResponse.FromString(await flagging.call("Score", score(FAR))).energy) == [0]
    with pytest.raises(OutOfRangeError):
        await refusing.call("Score", score(FAR))
    assert (flagging.counted, refusing.counted) == (1, 1)


async def test_a_stream_flags_or_refuses_each_request_and_goes_on() -> None:
    requests = [act(NEAR, sequence=1), act(FAR, sequence=2), act(NEAR, sequence=3)]
    flagged = [
        pb.ActResponse.FromString(raw) for raw in await Service(AnsweringBatcher()).stream("ActStream", *requests)
    ]
    assert [(reply.sequence, reply.out_of_range) for reply in flagged] == [(1, False), (2, True), (3, False)]
    raws = await Service(AnsweringBatcher(), refuses=True).stream("ActStream", *requests)
    replies = [pb.ActResponse.FromString(raw) for raw in raws]
    assert [reply.failure.reason for reply in replies] == ["", "out_of_range", ""]
    assert (replies[1].failure.code, replies[1].failure.message) == (3, REFUSED)


async def test_open_inference_flags_with_a_parameter_or_refuses() -> None:
    service = Service(AnsweringBatcher())
    near, far = [
        oip.ModelInferResponse.FromString(await service.call("ModelInfer", infer(state))) for state in (NEAR, FAR)
    ]
    assert dict(near.parameters) == {}
    assert dict(far.parameters) == {"kilolayer-out-of-range": oip.InferParameter(bool_param=True)}
    refusing = Service(AnsweringBatcher(), refuses=True)
    with pytest.raises(OutOfRangeError):
        await refusing.call("ModelInfer", infer(FAR))
    (raw,) = await refusing.stream("ModelStreamInfer", infer(FAR))
    reply = oip.ModelStreamInferResponse.FromString(raw)
    assert reply.error_message == REFUSED
    assert reply.infer_response.parameters["kilolayer-reason"].string_param == "out_of_range"
    assert (service.counted, refusing.counted) == (1, 2)


async def test_a_request_out_of_range_that_is_rejected_for_load_does_not_count() -> None:
    service = Service(FakeBatcher(OverloadedError("full", reason=Reason.QUEUE_FULL)))
    with pytest.raises(OverloadedError):
        await service.call("Act", act(FAR))
    with pytest.raises(OverloadedError):
        await service.call("ModelInfer", infer(FAR))
    assert service.counted == 0


@pytest.mark.parametrize("refuses", [False, True])
async def test_a_state_with_nan_is_invalid_and_not_out_of_range(refuses: bool) -> None:
    service = Service(AnsweringBatcher(), refuses=refuses)
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(InvalidRequestError) as refused:
            await service.call("Act", act([value, 0, 0, 99]))
        assert refused.value.reason == "invalid_request"
    assert service.counted == 0


async def test_without_a_check_nothing_is_flagged() -> None:
    handlers = RpcHandlers(Metrics(CollectorRegistry()))
    service = PolicyService(policies_of(AnsweringBatcher(), SPEC), handlers=handlers, max_rows=8).service()
    reply = await service.unary["Act"](act(FAR).SerializeToString(), CONTEXT)
    assert pb.ActResponse.FromString(reply).out_of_range is False


class NanEngine(FakeEngine):
    """Gives NaN for every row whose first value is 100 or more, or negative."""

    def compute(self, kind: Kind, rows: np.ndarray) -> np.ndarray:
        results = super().compute(kind, rows)
        results[(rows[:, 0] >= 100) | (rows[:, 0] < 0)] = np.nan
        return results


async def outcomes(*requests: list[float]) -> tuple[list[type[BaseException]], dict[str, float]]:
    """How requests fail when values above 50 are to blame, each with a one-column row for each value; the metrics."""
    registry, engine = CollectorRegistry(), NanEngine(max_rows=8)
    batcher = Batcher(
        engine,
        policy=BatchingPolicy(max_queue_rows=100, max_queue_age_s=9, max_batch_delay_s=0),
        metrics=Metrics(registry).for_policy("p"),
        clock=engine.clock,
        explains=lambda kind, rows: kind is Kind.ACT and bool((rows > 50).all()),
    )
    calls = (batcher.submit(np.array([[value] for value in values], np.float32)) for values in requests)
    failures = await asyncio.gather(*calls, return_exceptions=True)
    assert await batcher.drain(grace_s=5)
    names = ("non_finite", "extreme_input", "failed_batches")
    counted = {name: registry.get_sample_value(f"kilolayer_{name}_total", {"policy": "p"}) or 0 for name in names}
    return [type(each) for each in failures if isinstance(each, BaseException)], counted


async def test_an_extreme_input_is_to_blame_for_a_result_that_is_not_finite() -> None:
    failures, counted = await outcomes([1], [100], [60, 200])
    assert failures == [ExtremeInputError, ExtremeInputError]
    assert counted == {"non_finite": 0, "extreme_input": 2, "failed_batches": 0}


async def test_the_policy_is_to_blame_if_an_input_in_range_has_a_result_that_is_not_finite() -> None:
    failures, counted = await outcomes([-1], [100, -1], [1, 60, 2])
    assert failures == [NonFiniteActionError, NonFiniteActionError]
    assert counted == {"non_finite": 2, "extreme_input": 0, "failed_batches": 0}


async def test_a_request_whose_parts_fail_in_several_batches_counts_once() -> None:
    failures, counted = await outcomes([100] * 20)
    assert failures == [ExtremeInputError]
    assert counted == {"non_finite": 0, "extreme_input": 1, "failed_batches": 0}


def test_huge_values_are_the_fault_of_the_caller_in_every_method(running: Running) -> None:
    huge, goal, zeros = [3e38] * 4, [3e38, -3e38], [0.0] * 4  # of which this policy makes NaN
    before = running.sample("extreme_input_total", policy="point_u_maze")
    with kilolayer.PolicyClient(running.address, timeout_s=10) as client, client.stream() as stream:
        calls = [
            lambda: client.act(huge, GOAL),
            lambda: client.act(zeros, goal),
            lambda: client.act(zeros, goal, seed=1),
            lambda: client.act(zeros, goal, seed=1, best_of=2),
            lambda: client.act([zeros, huge], GOAL),
            lambda: client.score(zeros, [0, 0], goal=goal),
            lambda: stream.act(huge, GOAL),
        ]
        for call in calls:
            with pytest.raises(kilolayer.InvalidRequest) as refused:
                call()
            assert (refused.value.status, refused.value.reason) == ("INVALID_ARGUMENT", "extreme_input")
        assert stream.act(zeros, GOAL).out_of_range is False
    request = infer_request(np.array([huge]), np.array([GOAL]))
    with grpc.insecure_channel(running.address) as channel, pytest.raises(grpc.RpcError) as infer_refused:
        method(channel, "ModelInfer")(request, timeout=9)
    error: Any = infer_refused.value
    trailers = dict(error.trailing_metadata())
    assert (error.code().name, trailers["kilolayer-reason"]) == ("INVALID_ARGUMENT", "extreme_input")
    assert running.sample("extreme_input_total", policy="point_u_maze") == before + len(calls) + 1
    assert running.sample("non_finite_total", policy="point_u_maze") == 0


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that refuses states out of range."""
    root = tmp_path_factory.mktemp("refusing")
    probes: dict[str, Any] = {"probe_state": np.zeros((1, 4)), "probe_goal": np.zeros((1, 2))}
    bundle.write(root, 1, spec=SPEC, params=fresh_params(0, SPEC), provenance={}, **probes)
    settings: dict[str, Any] = {"listen": "127.0.0.1:0", "metrics": False, "max_batch_rows": 1, "max_call_rows": 8}
    with served(ServeConfig(policies=(root,), out_of_range="refuse", **settings)) as running:
        yield running


async def test_every_client_raises_the_refusal(refusing: Running) -> None:
    with kilolayer.PolicyClient(refusing.address, timeout_s=10) as client, client.stream() as stream:
        async with kilolayer.AsyncPolicyClient(refusing.address, timeout_s=10) as of_asyncio:
            assert (await of_asyncio.act(NEAR, GOAL)).out_of_range is False
            with pytest.raises(kilolayer.InvalidRequest) as awaited:
                await of_asyncio.act(FAR, GOAL)
        refused = [awaited]
        for call in (client.act, stream.act):
            with pytest.raises(kilolayer.InvalidRequest) as caught:
                call(FAR, GOAL)
            refused.append(caught)
        with pytest.raises(kilolayer.InvalidRequest) as extreme:
            client.act(NEAR, [3e38, -3e38])
    assert [caught.value.reason for caught in refused] == ["out_of_range"] * 3
    assert all(REFUSED in str(caught.value) for caught in refused)
    assert extreme.value.reason == "extreme_input"
    assert refusing.sample("out_of_range_total", policy=SPEC.name) == 3


async def test_a_policy_without_statistics_of_which_nothing_can_be_refused_is_named(
    policies: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = await load(
        ServeConfig(policies=(policies,), listen="127.0.0.1:0", metrics_port=0, metrics=False, out_of_range="refuse")
    )
    await server.start()
    server.open()
    assert caplog.messages == ["point_u_maze has no statistics of states, so --out-of-range refuse refuses none of it"]
    await server.drain()
