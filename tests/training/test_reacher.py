"""The reacher against geometry by hand, a controller and MuJoCo's own C engine."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from tests.training.truth import random_actions, roll, window_errors
from training.envs import registry
from training.envs.core.goal_env import GoalEnv

STEPS = 200


@pytest.fixture(scope="module")
def reacher() -> GoalEnv:
    return registry.make("reacher")


@pytest.fixture(scope="module")
def starts(reacher: GoalEnv):
    return jax.jit(jax.vmap(reacher.reset))(jax.random.split(jax.random.key(0), STEPS))


def test_sizes_and_limits(reacher: GoalEnv) -> None:
    assert (reacher.state_size, reacher.goal_size, reacher.action_size) == (10, 3, 2)
    assert reacher.action_high == (25.0, 25.0)
    assert reacher.control_period_s == pytest.approx(0.04)
    assert reacher.spec.success_radius == 0.05


def test_the_state_is_plane_geometry(reacher: GoalEnv, starts) -> None:
    """Links of 0.1 m and 0.11 m, from the first joint's angle a and the second's b, and the rates of both."""
    (a, b), (da, db) = np.asarray(starts.pipeline_state.qpos).T, np.asarray(starts.pipeline_state.qvel).T
    x, y = 0.1 * np.cos(a) + 0.11 * np.cos(a + b), 0.1 * np.sin(a) + 0.11 * np.sin(a + b)
    vx = -0.1 * np.sin(a) * da - 0.11 * np.sin(a + b) * (da + db)
    vy = 0.1 * np.cos(a) * da + 0.11 * np.cos(a + b) * (da + db)
    expected = [np.cos(a), np.cos(b), np.sin(a), np.sin(b), x, y, np.full(STEPS, 0.01), vx, vy, np.zeros(STEPS)]
    np.testing.assert_allclose(starts.info["state"], np.transpose(expected), atol=1e-6)
    np.testing.assert_allclose(reacher.achieved_goal(starts.info["state"])[0], [x[0], y[0], 0.01], atol=1e-6)


def test_starts_and_goals(starts) -> None:
    assert np.abs(starts.pipeline_state.qpos).max() <= 0.1
    assert np.abs(starts.pipeline_state.qvel).max() <= 0.005
    goal = np.asarray(starts.info["goal"])
    distance = np.linalg.norm(goal[:, :2], axis=1)
    assert distance.max() <= 0.2
    assert distance.mean() == pytest.approx(0.1, abs=0.02)
    np.testing.assert_allclose(goal[:, 2], 0.01)


def test_a_hand_made_controller_reaches_every_goal_it_can(reacher: GoalEnv, starts) -> None:
    """Inverse kinematics of two links, held by torques on angle and rate: within a radius the goals are in reach."""
    goal = np.asarray(starts.info["goal"])[:, :2]
    distance = np.linalg.norm(goal, axis=1)
    reachable = (distance > 0.03) & (distance < 0.19)
    bend = np.arccos(np.clip((distance**2 - 0.1**2 - 0.11**2) / (2 * 0.1 * 0.11), -1, 1))
    first = np.arctan2(goal[:, 1], goal[:, 0]) - np.arctan2(0.11 * np.sin(bend), 0.1 + 0.11 * np.cos(bend))
    aim = jnp.asarray(np.stack([first, bend], axis=1))
    step = jax.jit(jax.vmap(reacher.step))
    robots, at_goal = starts, np.zeros(STEPS)
    for _ in range(50):
        physics = robots.pipeline_state
        robots = step(robots, (40 * (aim - physics.qpos) - 12 * physics.qvel) / 25)
        at_goal += np.asarray(robots.metrics["success"])
    assert reachable.sum() > 100
    assert at_goal[reachable].min() > 20
    assert not robots.done.any()


def test_physics_agrees_with_mujoco_c(reacher: GoalEnv, starts) -> None:
    """Windows of one to four control steps; only the second joint's limit can be met."""

    def place(data: mujoco.MjData, step: int) -> None:
        data.qpos[:] = starts.pipeline_state.qpos[step]
        data.qpos[1] += 2.98 * (step // 8 % 2 == 0)

    truth = roll(reacher, random_actions(reacher, steps=STEPS, window=8), window=8, place=place)
    errors = window_errors(reacher, starts, truth)
    position, velocity = errors.of(free=True)
    assert (position < 1e-5).all()
    assert (velocity < 1e-3).all()
    assert (errors.of(free=False)[0] < 1e-4).all()
