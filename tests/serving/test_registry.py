"""Which version answers a request, during a canary and without one."""

import dataclasses
from typing import cast

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from kilolayer.v1 import policy_pb2 as pb
from serving.api.handlers import RpcHandlers
from serving.api.open_inference import open_inference_pb2 as open_inference
from serving.api.open_inference.service import OpenInferenceService
from serving.api.policy_service import PolicyService
from serving.api.rpc import RpcContext
from serving.batching.batcher import Batcher
from serving.config import ServeConfig
from serving.errors import UnknownVersionError
from serving.policies.canary import CanaryShare
from serving.policies.registry import PolicyRegistry, ServedPolicy
from serving.policies.seen_range import SeenRange
from serving.telemetry.metrics import Metrics
from tests.open_inference import infer_request
from tests.serving.fakes import BUNDLE, MODEL, SPEC, AnsweringBatcher

# Of 2**64, the hash of "robot 7" is 0.136, and that of "robot 9" 0.178: a share of 0.15 chooses the first alone.
SHARE = CanaryShare(policy=MODEL, candidate=2000, share=0.15)
STATE, GOAL = [0.0] * 4, [0.0] * 2


def served(version: int) -> ServedPolicy:
    batcher = cast("Batcher", AnsweringBatcher())
    return ServedPolicy(dataclasses.replace(BUNDLE, version=version), batcher, SeenRange(SPEC))


@pytest.fixture
async def policies() -> PolicyRegistry:
    """Version 1000 is live, 2000 is loaded."""
    policies = PolicyRegistry(frozenset({MODEL}), default=MODEL)
    policies.open([served(1000)])
    policies.add(served(2000))
    return policies


def found(policies: PolicyRegistry, robot: str, version: str = "") -> str:
    return policies.find("", version=version, robot=robot).version


async def test_without_a_canary_every_robot_gets_the_live_version(policies: PolicyRegistry) -> None:
    assert [found(policies, robot) for robot in ("robot 7", "robot 9", "")] == ["1000"] * 3


async def test_a_canary_answers_its_robots_and_the_live_version_the_others(policies: PolicyRegistry) -> None:
    policies.set_canary(MODEL, SHARE)
    assert [found(policies, robot) for robot in ("robot 7", "robot 9", "")] == ["2000", "1000", "1000"]
    policies.set_canary(MODEL, dataclasses.replace(SHARE, share=0.2))
    assert [found(policies, robot) for robot in ("robot 7", "robot 9", "")] == ["2000", "2000", "1000"]
    policies.set_canary(MODEL, None)
    assert found(policies, "robot 7") == "1000"


async def test_a_named_version_is_given_whatever_the_canary_says(policies: PolicyRegistry) -> None:
    policies.set_canary(MODEL, SHARE)
    assert [found(policies, "robot 7", version) for version in ("1000", "2000")] == ["1000", "2000"]
    with pytest.raises(UnknownVersionError, match="has no version '3000'; there are: 1000, 2000"):
        found(policies, "robot 7", "3000")


async def test_a_candidate_that_has_become_live_answers_every_robot(policies: PolicyRegistry) -> None:
    policies.set_canary(MODEL, SHARE)
    policies.switch(MODEL, "2000")
    assert [found(policies, robot) for robot in ("robot 7", "robot 9")] == ["2000", "2000"]


@pytest.mark.parametrize(
    ("robot_id", "caller", "version"),
    [("robot 7", "robot 9", "2000"), ("robot 9", "robot 7", "1000"), ("", "robot 7", "2000"), ("", "", "1000")],
)
async def test_methods_go_by_the_robots_id_and_without_one_by_the_caller(
    policies: PolicyRegistry, *, robot_id: str, caller: str, version: str
) -> None:
    policies.set_canary(MODEL, SHARE)
    metrics = Metrics(CollectorRegistry())
    handlers = RpcHandlers(metrics, clock=lambda: 0.0)
    ours = PolicyService(policies, handlers=handlers, max_rows=8).service().unary
    context = RpcContext("/any", caller=caller)
    act = pb.ActRequest(state=STATE, goal=GOAL, robot_id=robot_id).SerializeToString()
    assert pb.ActResponse.FromString(await ours["Act"](act, context)).version == version
    score = pb.ScoreRequest(state=STATE, action=[0, 0], goal=GOAL, robot_id=robot_id).SerializeToString()
    assert pb.ScoreResponse.FromString(await ours["Score"](score, context)).version == version
    described = pb.DescribeResponse.FromString(await ours["Describe"](b"", context))
    assert described.version == "1000"
    config = ServeConfig(policies=(BUNDLE.path,), max_call_rows=8)
    theirs = OpenInferenceService(policies, handlers=handlers, metrics=metrics, config=config).service().unary
    infer = infer_request(np.array([STATE]), np.array([GOAL]))
    if robot_id:
        infer.parameters["robot_id"].string_param = robot_id
    reply = open_inference.ModelInferResponse.FromString(await theirs["ModelInfer"](infer.SerializeToString(), context))
    assert reply.model_version == version


async def test_an_id_of_a_robot_that_is_too_long_for_a_score_is_refused_too(policies: PolicyRegistry) -> None:
    handlers = RpcHandlers(Metrics(CollectorRegistry()), clock=lambda: 0.0)
    ours = PolicyService(policies, handlers=handlers, max_rows=8).service().unary
    score = pb.ScoreRequest(state=STATE, action=[0, 0], goal=GOAL, robot_id="a" * 129).SerializeToString()
    with pytest.raises(Exception, match="robot_id must have at most 128 bytes in UTF-8, got 129"):
        await ours["Score"](score, RpcContext("/any"))
