"""The ant with a ball, in the open and in a maze, against its published facts and MuJoCo's own C engine."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from tests.training.truth import random_actions, roll, touching, window_errors
from training.envs import registry
from training.envs.core.goal_env import GoalEnv
from training.envs.locomotion.ant import FEET

STEPS = 200
STANDING = (0, 0, 0.5, 1, 0, 0, 0, 0, 1, 0, -1, 0, -1, 0, 1)


@pytest.fixture(scope="module")
def field() -> GoalEnv:
    return registry.make("ant_ball")


@pytest.fixture(scope="module")
def maze() -> GoalEnv:
    return registry.make("ant_ball_maze")


@pytest.fixture(scope="module")
def starts(field: GoalEnv):
    return jax.jit(jax.vmap(field.reset))(jax.random.split(jax.random.key(0), STEPS))


def test_the_ball_is_sensed_last_and_is_what_the_goal_is_for(field: GoalEnv, starts) -> None:
    assert (field.state_size, field.goal_size, field.action_size) == (31, 2, 8)
    assert field.spec.state_names[-2:] == ("ball x [m]", "ball y [m]")
    qpos = np.asarray(starts.pipeline_state.qpos)
    np.testing.assert_array_equal(field.achieved_goal(starts.info["state"]), qpos[:, 15:17])
    np.testing.assert_array_equal(starts.info["state"][:, :15], qpos[:, :15])
    np.testing.assert_array_equal(starts.info["state"][:, 15:29], starts.pipeline_state.qvel[:, :14])
    goal = jnp.array([[3.0, 4.0]])
    states = jnp.zeros((1, 31)).at[:, 29:].set(jnp.array([3.0, 4.4]))
    assert field.distance(states, goal)[0] == pytest.approx(0.4, abs=1e-5)


def test_the_ball_starts_ahead_of_the_ant_on_the_way_to_the_goal(starts) -> None:
    goal, ball = np.asarray(starts.info["goal"]), np.asarray(starts.info["state"][:, 29:])
    np.testing.assert_allclose(np.linalg.norm(goal, axis=1), 5, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(ball - 0.2 * goal, axis=1), 1, rtol=1e-5)
    assert np.linalg.norm(ball, axis=1).min() >= 2**0.5 - 1e-6
    ahead = (ball * goal).sum(axis=1) / 5
    assert ahead.min() >= 1 - 1e-6
    assert ahead.max() > 1.9
    assert not starts.pipeline_state.qvel[:, 14:].any()


def test_torso_and_feet_meet_the_ball(field: GoalEnv) -> None:
    data = mujoco.MjData(field.model)
    data.qpos[:] = [*STANDING, 0.7, 0]  # between two feet, and 0.05 m into the torso's sphere of 0.25 m
    mujoco.mj_forward(field.model, data)
    floor = {tuple(sorted(("floor", foot))) for foot in FEET}
    against = touching(field, data) - floor
    assert ("ball", "torso_geom") in against
    assert all("ball" in pair for pair in against)
    data.qpos[15:] = [0.8, 0.8]  # 1.13 m away along the first leg, whose foot reaches for it
    mujoco.mj_forward(field.model, data)
    assert touching(field, data) - floor == {("ball", "left_foot_geom")}
    data.qpos[15:] = [3, 0]
    mujoco.mj_forward(field.model, data)
    assert touching(field, data) <= floor


def test_a_pushed_ball_slides_on_until_the_limit_at_ten_meters(field: GoalEnv) -> None:
    data = mujoco.MjData(field.model)
    data.qpos[:] = [*STANDING, 4, 0]
    data.qvel[14] = 2.0
    for _ in range(200):  # two seconds
        mujoco.mj_step(field.model, data)
    assert data.qpos[15] == pytest.approx(8, abs=0.01)
    for _ in range(800):
        mujoco.mj_step(field.model, data)
    assert data.qpos[15] < 10.5


def test_a_maze_keeps_the_ball_in_its_cell_and_aims_at_the_goal_cells(maze: GoalEnv) -> None:
    qpos, _, goal = jax.jit(jax.vmap(maze.sample_task))(jax.random.split(jax.random.key(0), 500))
    assert np.abs(np.asarray(qpos[:, :2]) - 4).max() <= 0.1
    np.testing.assert_allclose(qpos[:, 15:], np.tile([4, 12], (500, 1)))
    cells = {tuple(cell) for cell in np.asarray(goal).tolist()}
    assert cells == {(4, 8), (8, 12), (12, 4), (12, 8), (12, 12)}


def test_walls_stop_the_ball(maze: GoalEnv) -> None:
    """Rolling north at 3 m/s from the middle of its cell: its border is 2 m away, its radius 0.5 m."""
    data = mujoco.MjData(maze.model)
    data.qpos[:] = [4, 4, *STANDING[2:], 4, 12]
    data.qvel[15] = 3.0
    furthest, met = 0.0, set[tuple[str, ...]]()
    for _ in range(200):
        mujoco.mj_step(maze.model, data)
        furthest = max(furthest, data.qpos[16])
        met |= {pair for pair in touching(maze, data) if "ball" in pair}
    assert 13.5 <= furthest < 13.6
    assert met == {("ball", "north")}


@pytest.mark.slow
def test_physics_agrees_with_mujoco_c(field: GoalEnv, starts) -> None:
    """Windows of one to four control steps, among them many in which the ball is pushed."""

    def place(data: mujoco.MjData, step: int) -> None:
        data.qpos[:15] = STANDING
        data.qpos[2] = 0.55 + 5 * (step // 8 % 2)  # every other window in the air
        data.qpos[15:] = [0.8, 0.1 * (step % 5)]
        data.qvel[:] = starts.pipeline_state.qvel[step]

    truth = roll(field, random_actions(field, steps=STEPS, window=8), window=8, place=place)
    assert sum(any("ball" in pair for pair in met) for met in truth.contacts) > 30
    errors = window_errors(field, starts, truth)
    position, velocity = errors.of(free=True)
    assert (position < 1e-5).all()
    assert (velocity < 1e-3).all()
    assert (errors.of(free=False, share=0.7)[0] < [1e-5, 1e-4, 1e-3, 2e-3]).all()
    assert (errors.of(free=False, share=0.7)[1] < [1e-3, 2e-3, 2e-2, 1e-1]).all()
    assert (errors.of(free=False, share=0.9)[0] < [1e-3, 5e-3, 2e-2, 5e-2]).all()
    assert (errors.of(free=False)[0] < 0.3).all()
