"""The half-cheetah against its published facts and MuJoCo's own C engine."""

import jax
import mujoco
import numpy as np
import pytest

from tests.training.truth import random_actions, roll, touching, window_errors
from training.envs import registry
from training.envs.core.goal_env import GoalEnv

STEPS = 200
MAY_TOUCH = {"head", "bthigh", "bfoot", "fthigh", "ffoot"}


@pytest.fixture(scope="module")
def cheetah() -> GoalEnv:
    return registry.make("cheetah")


@pytest.fixture(scope="module")
def starts(cheetah: GoalEnv):
    return jax.jit(jax.vmap(cheetah.reset))(jax.random.split(jax.random.key(0), STEPS))


def test_sizes_and_limits(cheetah: GoalEnv) -> None:
    assert (cheetah.state_size, cheetah.goal_size, cheetah.action_size) == (18, 1, 6)
    assert cheetah.action_high == (120.0, 90.0, 60.0, 120.0, 60.0, 30.0)
    assert cheetah.control_period_s == pytest.approx(0.05)
    assert cheetah.model.body_mass.sum() == pytest.approx(14)


def test_starts_are_fresh_and_the_goal_is_five_metres_away(cheetah: GoalEnv, starts) -> None:
    state = np.asarray(starts.info["state"])
    assert 0.09 < np.abs(state[:, :9]).max() <= 0.1
    assert state[:, 9:].std() == pytest.approx(0.1, rel=0.1)
    assert len(np.unique(state[:, 0])) == STEPS
    np.testing.assert_array_equal(starts.info["goal"], np.full((STEPS, 1), 5.0))
    np.testing.assert_allclose(starts.metrics["distance"], 5 - state[:, 0], rtol=1e-6)


def test_a_fallen_cheetah_lies_on_what_may_touch(cheetah: GoalEnv) -> None:
    data = mujoco.MjData(cheetah.model)
    met = set[tuple[str, ...]]()
    for _ in range(300):
        mujoco.mj_step(cheetah.model, data)
        met |= touching(cheetah, data)
    assert {("bfoot", "floor"), ("ffoot", "floor")} <= met
    assert met <= {tuple(sorted(("floor", part))) for part in MAY_TOUCH}


@pytest.mark.slow
def test_physics_agrees_with_mujoco_c(cheetah: GoalEnv, starts) -> None:
    """Windows of one to four control steps, in the air and on the floor."""

    def place(data: mujoco.MjData, step: int) -> None:
        data.qpos[:] = starts.pipeline_state.qpos[step]
        data.qpos[1] += 5 * (step // 8 % 2)  # every other window in the air
        data.qvel[:] = starts.pipeline_state.qvel[step]

    truth = roll(cheetah, random_actions(cheetah, steps=STEPS, window=8), window=8, place=place)
    errors = window_errors(cheetah, starts, truth)
    for free in (True, False):
        position, velocity = errors.of(free=free)
        assert (position < (1e-5 if free else 5e-4)).all()
        assert (velocity < (1e-3 if free else 2e-2)).all()
