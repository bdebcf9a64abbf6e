"""The humanoid and its mazes against their published facts and MuJoCo's own C engine."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from tests.training.truth import random_actions, roll, touching, window_errors
from training.envs import registry
from training.envs.core.goal_env import GoalEnv
from training.envs.locomotion import humanoid_maze
from training.envs.locomotion.humanoid_maze import HumanoidMaze

STEPS = 200
WINDOW = 8  # control steps after which C's own rollout starts anew
KNEES = [13, 17]  # of all positions


@pytest.fixture(scope="module")
def humanoid() -> GoalEnv:
    return registry.make("humanoid")


@pytest.fixture(scope="module")
def starts(humanoid: GoalEnv):
    return jax.jit(jax.vmap(humanoid.reset))(jax.random.split(jax.random.key(0), STEPS))


@pytest.fixture(scope="module")
def maze() -> HumanoidMaze:
    env = registry.make("humanoid_u_maze")
    assert isinstance(env, HumanoidMaze)
    return env


def test_sizes_names_and_limits(humanoid: GoalEnv, maze: HumanoidMaze) -> None:
    """246 is the published 268 less 22 that told of the goal: 2 places, 2 rates, 10 + 6 of a link, 2 torques."""
    assert (humanoid.state_size, humanoid.goal_size, humanoid.action_size) == (268 - 22, 3, 17)
    assert len(set(humanoid.spec.state_names)) == 246
    assert humanoid.spec.action_names[:4] == (
        *("abdomen_y [N m]", "abdomen_z [N m]"),
        *("abdomen_x [N m]", "right_hip_x [N m]"),
    )
    assert humanoid.action_high == pytest.approx([40] * 5 + [120, 80] + [40, 40, 120, 80] + [10] * 6)
    assert humanoid.action_low == tuple(-high for high in humanoid.action_high)
    assert humanoid.control_period_s == pytest.approx(0.03)
    assert maze.control_period_s == pytest.approx(0.015)
    assert humanoid.spec.success_radius == 0.5


def test_resets_stand_at_the_origin_and_aim_one_to_five_metres_away(starts) -> None:
    state, goal = np.asarray(starts.info["state"]), np.asarray(starts.info["goal"])
    np.testing.assert_allclose(state[:, :24], np.tile([0, 0, 1.4, 1, *[0] * 20], (STEPS, 1)))
    assert not state[:, 24:47].any()
    distance = np.linalg.norm(goal[:, :2], axis=1)
    assert 1 <= distance.min() < 1.3
    assert 4.7 < distance.max() <= 5
    assert distance.mean() == pytest.approx(3, abs=0.3)
    assert len(set(zip(*(goal[:, :2] > 0).T.tolist(), strict=True))) == 4  # every quadrant
    np.testing.assert_allclose(goal[:, 2], 1.25)
    assert (state == state[0]).all()  # so the goal is not part of it


def test_only_a_torso_out_of_its_range_ends_an_episode(humanoid: GoalEnv) -> None:
    states = jnp.zeros((5, 246)).at[:, 2].set(jnp.array([0.99, 1.01, 1.4, 1.99, 2.01]))
    assert humanoid.terminated(states).tolist() == [True, False, False, False, True]


def test_success_counts_height_too(humanoid: GoalEnv) -> None:
    states = jnp.zeros((3, 246)).at[:, :3].set(jnp.array([[1, 0, 1.25], [1, 0.3, 1.66], [1, 0.3, 1.64]]))
    distance = humanoid.distance(states, jnp.array([1, 0, 1.25]))
    assert (distance < humanoid.spec.success_radius).tolist() == [True, False, True]
    assert distance[1] == pytest.approx((0.3**2 + 0.41**2) ** 0.5)


def moving(env: GoalEnv, random: np.random.Generator) -> mujoco.MjData:
    """Somewhere, somehow, in motion; C has worked out all that follows from it."""
    data = mujoco.MjData(env.model)
    data.qpos[:3] = random.uniform(-3, 3, 3)
    data.qpos[3:7] = random.normal(size=4)
    data.qpos[3:7] /= np.linalg.norm(data.qpos[3:7])
    data.qpos[7:] = random.uniform(-1, 1, env.model.nq - 7)
    data.qvel[:] = random.normal(size=env.model.nv)
    mujoco.mj_forward(env.model, data)
    return data


def test_the_state_is_what_c_calls_qpos_qvel_cinert_cvel_and_qfrc_actuator(humanoid: GoalEnv, starts) -> None:
    random = np.random.default_rng(1)
    physics = jax.tree.map(lambda leaf: leaf[0], starts.pipeline_state)
    sense = jax.jit(humanoid.sense)
    for _ in range(3):
        data = moving(humanoid, random)
        torque = random.normal(size=23)
        now = physics.replace(
            **{name: jnp.asarray(getattr(data, name), jnp.float32) for name in ("qpos", "qvel")},
            qfrc_actuator=jnp.asarray(torque),
        )
        links = (data.cinert[1:].reshape(-1), data.cvel[1:].reshape(-1))
        expected = np.concatenate([data.qpos, data.qvel, *links, torque])
        np.testing.assert_allclose(sense(now), expected, atol=2e-4)


def test_only_feet_touch_and_only_the_floor(humanoid: GoalEnv) -> None:
    data = mujoco.MjData(humanoid.model)
    data.qpos[2] = 1.28
    mujoco.mj_forward(humanoid.model, data)
    assert touching(humanoid, data) == {("floor", "left_foot"), ("floor", "right_foot")}
    data.qpos[2:7] = [0, 0, 1, 0, 0]  # upside down, the head within the floor
    mujoco.mj_forward(humanoid.model, data)
    assert touching(humanoid, data) == set()


def test_a_maze_starts_in_its_start_cell_and_aims_at_the_middle_of_every_goal_cell_alike(maze: HumanoidMaze) -> None:
    qpos, _ = maze.sample_start(jax.random.key(0))
    np.testing.assert_allclose(qpos[:4], [2, 2, 1.4, 1])
    goals = np.asarray(jax.vmap(maze.sample_goal)(jax.random.split(jax.random.key(0), 3000)))
    cells, counts = np.unique(goals, axis=0, return_counts=True)
    expected = [[2, 4], [2, 6], [4, 6], [6, 2], [6, 4], [6, 6]]
    np.testing.assert_allclose(cells, [[*cell, 1.25] for cell in expected])
    assert np.abs(counts / 3000 - 1 / 6).max() < 0.035  # five standard deviations


def test_every_maze_is_registered_and_the_big_ones_evaluation_has_ten_goals() -> None:
    assert set(humanoid_maze.NAMES) == {
        *("humanoid_u_maze", "humanoid_u_maze_eval", "humanoid_big_maze"),
        *("humanoid_big_maze_eval", "humanoid_hardest_maze"),
    }
    assert set(humanoid_maze.NAMES) <= set(registry.names())
    big = registry.make("humanoid_big_maze_eval")
    assert isinstance(big, HumanoidMaze)
    assert len(big.maze.goals) == 10


def test_hips_knees_feet_and_hands_meet_the_walls(maze: HumanoidMaze) -> None:
    assert touching(maze, standing(maze, 2, 2)) == {("floor", "left_foot"), ("floor", "right_foot")}
    west = touching(maze, standing(maze, 1 - 0.01, 2))  # the border is 1 m from the middle of the first cell
    walls = {pair for pair in west if "floor" not in pair}
    assert walls >= {("hips", "west"), ("left knee", "west"), ("left_foot", "west"), ("right_foot", "west")}
    assert {name for pair in walls for name in pair} <= {"west", "left_foot", "right_foot", *humanoid_maze._STAND_INS}
    (box,) = maze.maze.obstacles
    inside = standing(maze, (box.low[0] + box.high[0]) / 2, box.high[1] - 0.05)
    assert ("hips", "wall 0") in touching(maze, inside)


def standing(env: GoalEnv, x: float, y: float) -> mujoco.MjData:
    data = mujoco.MjData(env.model)
    data.qpos[:3] = [x, y, 1.28]
    mujoco.mj_forward(env.model, data)
    return data


@pytest.mark.slow
def test_physics_agrees_with_mujoco_c(humanoid: GoalEnv, starts) -> None:
    """Windows of one to four control steps, begun at every moment of C's own 200 steps under random torques.

    Where nothing touches and no joint is at its limit, 1e-5 of a meter or radian and 1e-3 a second. Else one solver
    iteration in float32 finds another force than in float64 now and then: by length, within these in seven and in
    nine of ten windows, and never off by much.
    """
    random = np.random.default_rng(0)

    def place(data: mujoco.MjData, step: int) -> None:
        data.qpos[2] = random.uniform(1.28, 1.5) + 5 * (step // WINDOW % 2)  # every other window in the air
        data.qpos[KNEES] = -0.5
        data.qvel[:] = random.normal(scale=0.2, size=23)

    truth = roll(humanoid, random_actions(humanoid, steps=STEPS, window=WINDOW), window=WINDOW, place=place)
    assert {pair for met in truth.contacts for pair in met} == {("floor", "left_foot"), ("floor", "right_foot")}
    errors = window_errors(humanoid, starts, truth)
    position, velocity = errors.of(free=True)
    assert (position < 1e-5).all()
    assert (velocity < 1e-3).all()
    assert (errors.of(free=False, share=0.7)[0] < [1e-4, 2e-4, 1e-3, 5e-3]).all()
    assert (errors.of(free=False, share=0.7)[1] < [1e-2, 2e-2, 5e-2, 1e-1]).all()
    assert (errors.of(free=False, share=0.9)[0] < [5e-3, 1e-2, 2e-2, 3e-2]).all()
    assert (errors.of(free=False)[0] < 0.2).all()
