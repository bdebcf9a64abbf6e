"""The pusher against its published facts and MuJoCo's own C engine."""

import jax
import mujoco
import numpy as np
import pytest

from tests.training.truth import random_actions, roll, touching, window_errors
from training.envs import registry
from training.envs.core.goal_env import GoalEnv

STEPS = 200
HAND = ("r_wrist_roll1", "r_wrist_roll2", "r_wrist_roll3")


@pytest.fixture(scope="module")
def pusher() -> GoalEnv:
    return registry.make("pusher_easy")


@pytest.fixture(scope="module")
def starts(pusher: GoalEnv):
    return jax.jit(jax.vmap(pusher.reset))(jax.random.split(jax.random.key(0), STEPS))


def test_sizes_and_limits(pusher: GoalEnv) -> None:
    assert (pusher.state_size, pusher.goal_size, pusher.action_size) == (20, 3, 7)
    assert pusher.action_high == (2.0,) * 7
    assert pusher.control_period_s == pytest.approx(0.05)


def test_the_state_is_where_c_says_that_hand_and_puck_are(pusher: GoalEnv, starts) -> None:
    data = mujoco.MjData(pusher.model)
    for index in range(3):
        data.qpos[:] = starts.pipeline_state.qpos[index]
        data.qvel[:] = starts.pipeline_state.qvel[index]
        mujoco.mj_forward(pusher.model, data)
        fingertips = [data.geom("tip_arml").xpos, data.geom("tip_armr").xpos]
        expected = [data.qpos[:7], np.mean(fingertips, axis=0), data.body("object").xpos, data.qvel[:7]]
        np.testing.assert_allclose(starts.info["state"][index], np.concatenate(expected), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("pusher_easy", (0.25, -0.6), (0.65, -0.3)), ("pusher_hard", (-0.1, -0.7), (0.9, 0.3))],
)
def test_goals_are_in_their_range_and_the_puck_is_apart_from_them(name: str, low, high) -> None:
    env = registry.make(name)
    qpos, qvel, goal = (
        np.asarray(drawn) for drawn in jax.jit(jax.vmap(env.sample_task))(jax.random.split(jax.random.key(0), 2000))
    )
    assert (goal[:, :2] >= low).all()
    assert (goal[:, :2] <= high).all()
    np.testing.assert_allclose([goal[:, :2].min(axis=0), goal[:, :2].max(axis=0)], [low, high], atol=0.02)
    np.testing.assert_allclose(goal[:, 2], -0.275)
    assert not qpos[:, :7].any()
    assert np.abs(qvel[:, :7]).max() <= 0.005
    assert not qvel[:, 7:].any()
    puck = np.array([0.45, -0.05]) + qpos[:, [8, 7]]
    apart = np.linalg.norm(puck - goal[:, :2], axis=1)
    assert apart.min() == pytest.approx(0.17, abs=1e-5)
    drawn = (puck[apart > 0.171] - [0.45, -0.05]).T
    assert np.abs(drawn[0]).max() <= 0.2 + 1e-6
    assert -0.3 <= drawn[1].min() <= drawn[1].max() <= 1e-6


def test_success_is_the_puck_within_ten_centimetres(pusher: GoalEnv) -> None:
    state = np.zeros((2, 20), np.float32)
    state[:, 10:13] = [[0.5, -0.4, -0.275], [0.5, -0.42, -0.275]]
    near = pusher.distance(state, np.array([0.5, -0.31, -0.275], np.float32)) < pusher.spec.success_radius
    assert near.tolist() == [True, False]


def test_the_hand_meets_puck_and_table_and_nothing_else_meets(pusher: GoalEnv) -> None:
    data = mujoco.MjData(pusher.model)
    mujoco.mj_forward(pusher.model, data)
    assert touching(pusher, data) == set()
    place_hand_at_puck(data, offset=0.0)
    mujoco.mj_forward(pusher.model, data)
    met = touching(pusher, data)
    assert {name for pair in met for name in pair} <= {*HAND, "object_geom", "table"}
    assert any("object_geom" in pair for pair in met)


def place_hand_at_puck(data: mujoco.MjData, *, offset: float) -> None:
    """Lower the stretched arm to the table and slide the puck under the hand."""
    data.qpos[1] = 0.36
    mujoco.mj_kinematics(data.model, data)
    hand = data.body("tips_arm").xpos
    data.qpos[7:] = [hand[1] + 0.05 + offset, hand[0] - 0.45]


@pytest.mark.slow
def test_physics_agrees_with_mujoco_c(pusher: GoalEnv, starts) -> None:
    """Windows of one to four control steps, among them many in which the hand pushes the puck."""

    def place(data: mujoco.MjData, step: int) -> None:
        data.qpos[:] = starts.pipeline_state.qpos[step]
        data.qpos[[3, 5]] = -0.3  # away from their limits
        if step // 8 % 2 == 0:
            place_hand_at_puck(data, offset=0.02 * (step % 3))

    truth = roll(pusher, random_actions(pusher, steps=STEPS, window=8), window=8, place=place)
    assert sum(any("object_geom" in pair for pair in met) for met in truth.contacts) > 30
    errors = window_errors(pusher, starts, truth)
    for free in (True, False):
        position, velocity = errors.of(free=free)
        assert (position < (1e-5 if free else 5e-4)).all()
        assert (velocity < (1e-3 if free else 2e-2)).all()
