"""The ant and its box against its published facts and MuJoCo's own C engine."""

import jax
import mujoco
import numpy as np
import pytest

from tests.training.truth import random_actions, roll, touching, window_errors
from training.envs import registry
from training.envs.core.goal_env import GoalEnv

STEPS = 200


@pytest.fixture(scope="module")
def push() -> GoalEnv:
    return registry.make("ant_push")


@pytest.fixture(scope="module")
def starts(push: GoalEnv):
    return jax.jit(jax.vmap(push.reset))(jax.random.split(jax.random.key(0), STEPS))


def test_the_box_is_sensed_last_and_the_goal_is_for_the_torso(push: GoalEnv, starts) -> None:
    assert (push.state_size, push.goal_size, push.action_size) == (31, 2, 8)
    state, goal = np.asarray(starts.info["state"]), np.asarray(starts.info["goal"])
    np.testing.assert_allclose(state[:, 29:], np.tile([8, 8], (STEPS, 1)))
    np.testing.assert_array_equal(push.achieved_goal(state), state[:, :2])
    assert np.abs(state[:, :2]).max() <= 0.1
    assert np.abs(state[:, 2] - 0.75).max() <= 0.1
    right = goal[:, 0] > goal[:, 1]
    assert 60 < right.sum() < 140
    for cell, drawn in (([16, 8], goal[right]), ([8, 16], goal[~right])):
        offset = drawn - cell
        assert 0 <= offset.min() < 0.2
        assert 1.8 < offset.max() <= 2


def test_the_ant_is_lighter_than_elsewhere(push: GoalEnv) -> None:
    """Its parts have 40 of the 50 kg/m^3 of the other tasks, in which it weighs 9.109 kg; the box weighs 1 kg."""
    assert push.model.body_mass.sum() == pytest.approx(9.109 * 40 / 50 + 1, abs=1e-3)


def test_every_start_and_goal_is_free_and_the_way_is_blocked(push: GoalEnv) -> None:
    """The seven walls and the box cover all of the five by five cells but the published free ones."""
    walls = push.floor_plan()
    centers = [(x, y) for x in range(-8, 25, 8) for y in range(-8, 25, 8)]
    free = {(x, y) for x, y in centers if not any(low[0] < x < high[0] and low[1] < y < high[1] for low, high in walls)}
    assert free == {(0, 0), (8, 0), (0, 8), (8, 8), (16, 8), (8, 16)}


def at(push: GoalEnv, ant: tuple[float, float], box: tuple[float, float]) -> mujoco.MjData:
    data = mujoco.MjData(push.model)
    data.qpos[:] = [*ant, 0.5, 1, 0, 0, 0, 0, 1, 0, -1, 0, -1, 0, 1, *box]
    mujoco.mj_forward(push.model, data)
    return data


def test_the_box_meets_walls_by_its_corners_and_the_ant_by_its_sides(push: GoalEnv) -> None:
    alone = {pair for pair in touching(push, at(push, (0, 0), (8, 8))) if "floor" not in pair}
    assert alone == set()
    aside = touching(push, at(push, (0, 0), (16, 7.5)))  # its lower side at 3.9 m, 0.1 m within F, whose top is at 4 m
    assert {pair for pair in aside if "floor" not in pair} == {("F", "corner 0"), ("F", "corner 2")}
    near = touching(push, at(push, (4.4 - 0.3, 8), (8, 8)))  # the hull reaches 0.36 m
    assert ("box", "hull") in near


def test_the_box_can_be_pushed_stops_when_let_go_and_is_stopped_by_walls(push: GoalEnv) -> None:
    data = at(push, (0, 0), (8, 8))
    data.qfrc_applied[14] = 20.0
    for _ in range(200):
        mujoco.mj_step(push.model, data)
    assert data.qvel[14] == pytest.approx(2, rel=0.01)  # 20 N against 10 N s/m
    data.qfrc_applied[14] = 0
    for _ in range(100):
        mujoco.mj_step(push.model, data)
    assert abs(data.qvel[14]) < 0.01
    data.qfrc_applied[14] = 20.0
    for _ in range(1000):
        mujoco.mj_step(push.model, data)
    assert data.qpos[15] == pytest.approx(20 - 3.6, abs=0.05)  # E begins at 20 m
    assert {pair for pair in touching(push, data) if "E" in pair} == {("E", "corner 2"), ("E", "corner 3")}


@pytest.mark.slow
def test_physics_agrees_with_mujoco_c(push: GoalEnv, starts) -> None:
    """Windows of one to four control steps, among them many in which the ant pushes the box or meets a wall."""

    def place(data: mujoco.MjData, step: int) -> None:
        kind = step // 8 % 4
        data.qpos[:15] = [*((0, 0), (0, 0), (4, 8), (-3.7, 1))[kind], 0.6, 1, 0, 0, 0, 0, 1, 0, -1, 0, -1, 0, 1]
        data.qpos[2] += 5 * (kind == 1)
        data.qpos[15:] = (8, 8)
        data.qvel[:] = starts.pipeline_state.qvel[step]

    truth = roll(push, random_actions(push, steps=STEPS, window=8), window=8, place=place)
    met = [{name for pair in pairs for name in pair} for pairs in truth.contacts]
    assert sum("box" in names for names in met) > 10
    assert sum("D" in names for names in met) > 10
    errors = window_errors(push, starts, truth)
    position, velocity = errors.of(free=True)
    assert (position < 1e-5).all()
    assert (velocity < 1e-3).all()
    assert (errors.of(free=False, share=0.9)[0] < [1e-5, 1e-4, 2e-4, 5e-4]).all()
    assert (errors.of(free=False, share=0.9)[1] < [1e-3, 2e-3, 5e-3, 5e-3]).all()
    assert (errors.of(free=False)[0] < 0.05).all()
