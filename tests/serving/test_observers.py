"""What else happens with the rows and the actions of answered requests: shadows compare them, robots become known."""

import asyncio
from typing import Any, cast

import numpy as np
from prometheus_client import CollectorRegistry

from kilolayer.v1 import policy_pb2 as pb
from serving.api.handlers import RpcHandlers
from serving.api.observers import Observers
from serving.api.policy_service import PolicyService
from serving.api.rpc import RpcContext
from serving.policies.episode_reports import EpisodeReports, PolicyVersion
from serving.policies.shadow import Shadow
from serving.telemetry.metrics import Metrics
from tests.serving.fakes import MODEL, FakeBatcher, policies_of

STATES, GOAL = [[0.0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]], [0.5, -0.5]
ACTIONS = np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], np.float32)


class RecordingShadow:
    """Compares the rows whose numbers are in `chosen`; None: no rows."""

    def __init__(self, chosen: list[int] | None) -> None:
        self.chosen = chosen
        self.compared: list[tuple[list[Any], list[Any]]] = []

    def sample(self, rows: np.ndarray) -> np.ndarray | None:
        return None if self.chosen is None else np.array(self.chosen)

    def compare(self, rows: np.ndarray, actions: np.ndarray) -> None:
        self.compared.append((rows.tolist(), actions.tolist()))


class Served:
    """A policy with a shadow, and its reports."""

    def __init__(self, shadow: RecordingShadow) -> None:
        self.batcher = FakeBatcher()
        self.reports = EpisodeReports()
        policies = policies_of(self.batcher)
        policies.set_shadow(MODEL, cast("Shadow", shadow))
        handlers = RpcHandlers(Metrics(CollectorRegistry()), clock=lambda: 0.0)
        observers = Observers(policies, reports=self.reports)
        self._unary = PolicyService(policies, handlers=handlers, max_rows=8, observers=observers).service().unary

    async def call(self, method: str, request: Any, results: np.ndarray) -> None:
        answering = asyncio.ensure_future(self._unary[method](request.SerializeToString(), RpcContext("/any")))
        await self.batcher.until_admitted(1)
        self.batcher.answer(results)
        await answering

    async def act(self, **fields: Any) -> None:
        state = [value for row in STATES for value in row]
        await self.call("Act", pb.ActRequest(state=state, goal=GOAL, **fields), ACTIONS)


async def test_a_shadow_gets_the_chosen_rows_and_the_live_actions_for_them() -> None:
    shadow = RecordingShadow([0, 2])
    await Served(shadow).act()
    rows = [[0, 1, 2, 3, 0.5, -0.5], [8, 9, 10, 11, 0.5, -0.5]]
    assert shadow.compared == [(rows, ACTIONS[[0, 2]].tolist())]


async def test_rows_that_are_not_chosen_and_other_kinds_of_requests_are_not_compared() -> None:
    shadow = RecordingShadow(None)
    await Served(shadow).act()
    shadow.chosen = [0]
    await Served(shadow).act(mode="ACT_MODE_STOCHASTIC", seed=1)
    score = pb.ScoreRequest(state=STATES[0], action=[0, 0], goal=GOAL)
    await Served(shadow).call("Score", score, np.zeros(1, np.float32))
    assert shadow.compared == []


async def test_a_robot_is_known_once_it_is_answered_and_not_before() -> None:
    served, version = Served(RecordingShadow(None)), PolicyVersion(MODEL, 1000)
    acting = asyncio.ensure_future(served.act(robot_id="robot 7"))
    await served.batcher.until_admitted(1)
    assert not served.reports.knows("robot 7", version)
    await acting
    assert served.reports.knows("robot 7", version)
