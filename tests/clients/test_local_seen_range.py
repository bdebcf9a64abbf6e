"""The range of states that training saw, as a local policy and as a server judge it."""

from typing import Any

import numpy as np
import pytest

from kilolayer._local.seen_range import SeenRange
from policy.spec import PolicySpec
from serving.engine.engine import Kind
from serving.policies import seen_range
from tests.samples import policy_spec

STATE_NAMES = ("x [m]", "qw", "qx", "qy", "qz", "v [m/s]")
SEEN: dict[str, Any] = {
    "seen_mean": (0.1, 0.0, 0.0, 0.0, 0.0, 2.0),
    "seen_std": (0.3, 0.1, 0.1, 0.1, 0.1, 0.0),
    "seen_low": (-0.7, 0.0, -0.5, -0.5, -0.5, 2.0),
    "seen_high": (1.1, 1.0, 0.5, 0.5, 0.5, 2.0),
}


def judged(spec: PolicySpec) -> SeenRange:
    return SeenRange(spec.seen_low, spec.seen_high, std=spec.seen_std, quaternions=spec.state_quaternions)


@pytest.mark.parametrize("statistics", [SEEN, {}], ids=["statistics", "none"])
def test_both_judge_random_and_borderline_states_alike(statistics: dict[str, Any]) -> None:
    spec = policy_spec(state_names=STATE_NAMES, state_quaternions=(1,), **statistics)
    ours, theirs = judged(spec), seen_range.SeenRange(spec)
    random = np.random.default_rng(0)
    state = random.normal(size=(2000, 6)).astype(np.float32)
    state[:, 5] = 2 + random.uniform(-2e-3, 2e-3, size=2000)
    state[::7, 1] = 0
    state[1000] = 0
    for number, (low, high) in enumerate([(-2.2, 2.6), (0, 1.5), (-1, 1), (-1, 1), (-1, 1), (1.999, 2.001)]):
        for value in (low, high):
            for nearby in (np.nextafter(np.float32(value), np.float32(way)) for way in (-9, value, 9)):
                state = np.append(state, [[0.0, 1.0, 0.0, 0.0, 0.0, 2.0]], axis=0).astype(np.float32)
                state[-1, number] = nearby
    judgments = [ours.contains(row[None]) for row in state]
    assert judgments == [theirs.contains(row[None]) for row in state]
    assert len(set(judgments)) == (2 if statistics else 1)


@pytest.mark.parametrize("statistics", [SEEN, {}], ids=["statistics", "none"])
def test_both_blame_the_same_inputs_for_results_that_are_not_finite(statistics: dict[str, Any]) -> None:
    spec = policy_spec(state_names=STATE_NAMES, state_quaternions=(1,), **statistics)
    ours, theirs = judged(spec), seen_range.SeenRange(spec)
    near, far, extreme = np.zeros((3, 1, 6), np.float32)
    near[:, 5], far[:, 5], extreme[:, 5] = 2, 3, 2e6
    goal, extreme_goal = np.zeros((1, 2), np.float32), np.full((1, 2), 2e6, np.float32)
    cases = [(near, goal), (near, extreme_goal), (far, goal), (extreme, goal)]
    cases.append((np.concatenate([near, extreme]), np.concatenate([goal, goal])))  # one row is not to blame
    cases.append((np.concatenate([near, extreme]), np.concatenate([extreme_goal, goal])))
    blamed = [ours.explains(*case) for case in cases]
    assert blamed == [theirs.explains(Kind.ACT, np.concatenate(case, axis=1)) for case in cases]
    assert blamed == [False, True, bool(statistics), True, False, True]
