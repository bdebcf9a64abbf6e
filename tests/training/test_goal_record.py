"""What counts as touching a goal and staying there, worked out by hand, and for both kinds of arrays."""

import jax.numpy as jnp
import numpy as np
import pytest

from training.envs.core.goal_record import GoalRecord

LENGTH = 20


def record(at_goal: set[int], *, falls: int = 0, diverges: int = 0, arrays=np) -> GoalRecord:
    """One episode of 20 steps that is at its goal after the steps `at_goal`, numbered from 1."""
    found = GoalRecord.begin(arrays.zeros(1, arrays.int32))
    for step in range(1, LENGTH + 1):
        truths = (step in at_goal, step == falls, not 0 < diverges <= step)
        at, done, finite = (arrays.array([truth]) for truth in truths)
        found = found.after(step, at_goal=at, done=done, finite=finite)
    return found


@pytest.mark.parametrize("arrays", [np, jnp], ids=["numpy", "jax"])
@pytest.mark.parametrize(
    ("at_goal", "falls", "time_at_goal", "stay"),
    [
        (set(), 0, 0, 0),  # never there
        ({*range(1, 21)}, 0, 20, 1),  # always there
        ({*range(11, 21)}, 0, 10, 1),  # there from step 11 to the end, ten steps
        ({20}, 0, 1, 1 / 2),  # there in the last step: one of at least two, a tenth of 20
        ({19, 20}, 0, 2, 1),
        ({5}, 5, 1, 1 / 16),  # touches and falls: steps 5 to 20 are 16
        ({5, 6, 7, 8}, 6, 2, 2 / 16),  # steps after a fall are away from the goal
        ({6, 7}, 5, 0, 0),  # arrives after the fall
        ({5, 9, 20}, 0, 3, 3 / 16),  # comes and goes
    ],
)
def test_stay_is_the_share_of_the_time_since_the_first_arrival(
    arrays, at_goal: set[int], falls: int, time_at_goal: int, stay: float
) -> None:
    found = record(at_goal, falls=falls, arrays=arrays)
    assert found.time_at_goal.tolist() == [time_at_goal]
    assert found.touched.tolist() == [time_at_goal > 0]
    assert float(found.stay(LENGTH)[0]) == pytest.approx(stay)
    assert found.diverged.tolist() == [False]
    assert found.terminated.tolist() == [falls > 0]
    assert found.steps.tolist() == [falls or LENGTH]


def test_an_episode_that_diverges_has_not_reached_its_goal() -> None:
    found = record({3, 4, 5}, diverges=6)
    assert (found.touched.tolist(), found.time_at_goal.tolist(), found.diverged.tolist()) == ([False], [0], [True])
    assert float(found.stay(LENGTH)[0]) == 0
    assert (found.terminated.tolist(), found.steps.tolist()) == ([False], [5])


def test_what_becomes_of_the_state_after_a_fall_does_not_count() -> None:
    found = record({3, 4}, falls=4, diverges=7)
    assert (found.touched.tolist(), found.time_at_goal.tolist(), found.diverged.tolist()) == ([True], [2], [False])
