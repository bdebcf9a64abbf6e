"""The ant against its published facts and MuJoCo's own C engine."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from tests.training.truth import random_actions, roll, touching, window_errors
from training.envs import registry
from training.envs.core.goal_env import GoalEnv

STEPS = 200
WINDOW = 8  # control steps after which C's own rollout starts anew, standing


@pytest.fixture(scope="module")
def ant() -> GoalEnv:
    return registry.make("ant")


@pytest.fixture(scope="module")
def starts(ant: GoalEnv):
    return jax.jit(jax.vmap(ant.reset))(jax.random.split(jax.random.key(0), STEPS))


def test_sizes_names_and_limits(ant: GoalEnv) -> None:
    assert (ant.state_size, ant.goal_size, ant.action_size) == (29, 2, 8)
    assert ant.spec.action_names == (
        *("hip_4 [N m]", "ankle_4 [N m]", "hip_1 [N m]", "ankle_1 [N m]"),
        *("hip_2 [N m]", "ankle_2 [N m]", "hip_3 [N m]", "ankle_3 [N m]"),
    )
    assert ant.action_low == (-150.0,) * 8
    assert ant.action_high == (150.0,) * 8
    assert ant.control_period_s == pytest.approx(0.05)
    assert ant.spec.success_radius == 0.5


def test_it_weighs_as_much_as_the_published_ant(ant: GoalEnv) -> None:
    assert ant.model.body_mass.sum() == pytest.approx(9.1, abs=0.01)


def test_resets_are_fresh_standing_and_aim_at_the_circle(starts) -> None:
    state, goal = np.asarray(starts.info["state"]), np.asarray(starts.info["goal"])
    assert len(np.unique(state[:, 0])) == STEPS
    assert np.abs(state[:, :2]).max() <= 0.1
    assert np.abs(state[:, 2] - 0.55).max() <= 0.1
    np.testing.assert_allclose(np.linalg.norm(state[:, 3:7], axis=1), 1, atol=1e-6)
    assert np.abs(state[:, 7:15] - [0, 1, 0, -1, 0, -1, 0, 1]).max() <= 0.1
    assert state[:, 15:].std() == pytest.approx(0.1, rel=0.05)
    np.testing.assert_allclose(np.linalg.norm(goal, axis=1), 10, rtol=1e-6)
    quadrants = set(zip(*(goal > 0).T.tolist(), strict=True))
    assert len(quadrants) == 4


def test_only_a_torso_out_of_its_range_ends_an_episode(ant: GoalEnv) -> None:
    heights = jnp.array([0.19, 0.21, 0.55, 0.99, 1.01])
    states = jnp.zeros((5, 29)).at[:, 2].set(heights)
    assert ant.terminated(states).tolist() == [True, False, False, False, True]


def test_success_is_within_half_a_metre_of_the_goal(ant: GoalEnv, starts) -> None:
    goal = starts.info["state"][:3, :2] + jnp.array([[0.49, 0.0], [0.0, 0.51], [0.36, 0.36]])
    near = jax.vmap(ant.with_goal)(jax.tree.map(lambda leaf: leaf[:3], starts), goal)
    assert near.metrics["success"].tolist() == [1, 0, 0]
    np.testing.assert_allclose(near.metrics["distance"], [0.49, 0.51, 0.36 * 2**0.5], atol=1e-5)


def test_only_feet_touch_and_only_the_floor(ant: GoalEnv) -> None:
    """Let go, an ant comes to rest on its four feet; its torso passes through the floor when it is put there."""
    data = mujoco.MjData(ant.model)
    data.qpos[:] = [0, 0, 0.55, 1, 0, 0, 0, 0, 1, 0, -1, 0, -1, 0, 1]
    for _ in range(300):
        mujoco.mj_step(ant.model, data)
    assert touching(ant, data) == {("floor", f"{leg}_foot_geom") for leg in ("left", "right", "third", "fourth")}
    assert 0.2 < data.qpos[2] < 0.55
    data.qpos[:] = [0, 0, 0.1, 0, 1, 0, 0, 0, 1, 0, -1, 0, -1, 0, 1]  # on its back, torso and legs within the floor
    mujoco.mj_forward(ant.model, data)
    assert touching(ant, data) == set()


@pytest.mark.slow
def test_physics_agrees_with_mujoco_c(ant: GoalEnv, starts) -> None:
    """Windows of one to four control steps, begun at every moment of C's own 200 steps under random torques.

    Where nothing touches and no joint is at its limit, 1e-5 of a meter or radian and 1e-3 a second. Else one solver
    iteration in float32 finds another force than in float64 now and then: by length, within these in nine windows
    of ten, and never off by much.
    """

    def place(data: mujoco.MjData, step: int) -> None:
        data.qpos[:] = starts.info["state"][step, :15]
        data.qpos[2] += 5 * (step // WINDOW % 2)  # every other window in the air
        data.qvel[:] = starts.info["state"][step, 15:]

    truth = roll(ant, random_actions(ant, steps=STEPS, window=WINDOW), window=WINDOW, place=place)
    errors = window_errors(ant, starts, truth)
    position, velocity = errors.of(free=True)
    assert (position < 1e-5).all()
    assert (velocity < 1e-3).all()
    assert (errors.of(free=False, share=0.9)[0] < [1e-4, 5e-4, 1e-3, 3e-3]).all()
    assert (errors.of(free=False, share=0.9)[1] < [5e-3, 2e-2, 5e-2, 1e-1]).all()
    assert (errors.of(free=False)[0] < [0.05, 0.1, 0.1, 0.1]).all()
