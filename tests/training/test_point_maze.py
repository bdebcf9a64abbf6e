"""The point mazes against hand-worked motion, their walls, and MuJoCo's own C engine."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from brax.envs.base import Env, State
from brax.envs.wrappers.training import wrap

from tests.training.cart import Cart
from training.envs import registry
from training.envs.core.goal_env import GoalEnv
from training.envs.locomotion.point_maze import BALL_RADIUS_M, PointMaze

ROBOTS = 6
NAMES = ("point_u_maze", "point_big_maze", "point_hardest_maze")


@pytest.fixture(scope="module")
def step(u_maze: GoalEnv) -> object:
    """One compiled program for every test: it steps `ROBOTS` robots, of which those that are asked for are kept."""
    compiled = jax.jit(jax.vmap(u_maze.step))

    def step(state: State, action: jax.Array) -> State:
        robots = len(action)

        def grown(leaf: jax.Array) -> np.ndarray:
            return np.concatenate([leaf, *[leaf[-1:]] * (ROBOTS - robots)])

        after = compiled(jax.tree.map(grown, state), grown(action))
        return jax.tree.map(lambda leaf: np.asarray(leaf)[:robots], after)

    return step


@pytest.fixture(scope="module")
def reset(u_maze: GoalEnv) -> object:
    return jax.jit(jax.vmap(u_maze.reset))


def placed(env: GoalEnv, reset, qpos: list[list[float]], qvel: list[list[float]] | None = None) -> State:
    """Robots at rest, or at `qvel`, at the positions `qpos`."""
    every = reset(jax.random.split(jax.random.key(0), ROBOTS))
    state = jax.tree.map(lambda leaf: np.asarray(leaf)[: len(qpos)], every)
    velocity = jnp.asarray(qvel) if qvel else jnp.zeros((len(qpos), 2))
    data = state.pipeline_state.replace(qpos=jnp.asarray(qpos), qvel=velocity)
    return state.replace(pipeline_state=data)


def test_sizes_names_and_limits(u_maze: GoalEnv) -> None:
    assert (u_maze.state_size, u_maze.goal_size, u_maze.action_size, u_maze.observation_size) == (4, 2, 2, 6)
    assert u_maze.action_low == (-4.0, -4.0)
    assert u_maze.action_high == (4.0, 4.0)
    assert u_maze.control_period_s == pytest.approx(0.16)


@pytest.mark.parametrize("name", NAMES)
def test_resets_are_fresh_and_where_the_layout_says(name: str) -> None:
    env = registry.make(name)
    assert isinstance(env, PointMaze)
    state = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(1), 500))
    start, goal = np.asarray(state.info["state"]), np.asarray(state.info["goal"])
    assert len(np.unique(start[:, 0])) > 450
    assert np.abs(start[:, :2] - 1.0).max() <= 0.1
    assert (start[:, 2:] == 0).all()
    offsets = goal[:, None] - env.maze.goals[None]
    nearest = np.abs(offsets).max(axis=-1).argmin(axis=1)
    assert np.abs(offsets[np.arange(500), nearest]).max() <= 0.2 + 1e-6
    assert set(nearest) == set(range(len(env.maze.goals)))
    np.testing.assert_array_equal(state.obs, np.concatenate([start, goal], axis=1))


def test_motion_in_the_open_follows_the_equation_of_motion(u_maze: GoalEnv, reset, step) -> None:
    """m dv/dt = f - d v, damping implicit: v' = (v + h f / m) / (1 + h d / m), four times per control step."""
    state = step(placed(u_maze, reset, [[1.0, 1.0]]), jnp.array([[0.5, -0.25]]))
    position, velocity = np.array([1.0, 1.0]), np.zeros(2)
    for _ in range(4):
        velocity = (velocity + 0.04 * np.array([2.0, -1.0])) / (1 + 0.04 * 2.0)
        position = position + 0.04 * velocity
    np.testing.assert_allclose(state.info["state"][0], [*position, *velocity], atol=1e-6)


def test_actions_beyond_the_limits_count_as_the_limits(u_maze: GoalEnv, reset, step) -> None:
    start = placed(u_maze, reset, [[1.0, 1.0], [1.0, 1.0]])
    state = step(start, jnp.array([[9.0, 0.0], [1.0, 0.0]]))
    np.testing.assert_array_equal(state.info["state"][0], state.info["state"][1])


def test_walls_hold_on_every_side(u_maze: GoalEnv, reset, step) -> None:
    """Pushed for 4 s against the four borders and the inner wall, the ball rests within millimeters of its surface."""
    starts = [[1.0, 1.0], [3.0, 3.0], [3.0, 1.0], [1.0, 3.0], [1.0, 1.0], [2.9, 1.5]]
    pushes = jnp.array([[-1, 0], [1, 0], [0, -1], [0, 1], [1, 0], [-1, 0]], jnp.float32)
    state = placed(u_maze, reset, starts)
    for _ in range(50):
        state = step(state, pushes)
    settled = np.asarray(state.info["state"])
    surface = {0: (0, 0.5), 1: (0, 3.5), 2: (1, 0.5), 3: (1, 3.5), 4: (0, 1.5), 5: (0, 2.5)}
    for robot, (axis, wall) in surface.items():
        gap = abs(settled[robot, axis] - wall) - BALL_RADIUS_M
        assert -0.02 < gap < 0.002, (robot, settled[robot])


def test_a_thrown_ball_does_not_tunnel(u_maze: GoalEnv, reset, step) -> None:
    """Twice the motors' top speed of 2 m/s against the inner wall, ten times against the border."""
    state = placed(u_maze, reset, [[1.0, 1.0], [1.0, 1.0]], [[4.0, 0.0], [-20.0, 0.0]])
    for _ in range(25):
        state = step(state, jnp.zeros((2, 2)))
    x = np.asarray(state.info["state"])[:, 0]
    assert (x > 0.6).all()
    assert (x < 1.4).all()


def test_physics_agrees_with_mujoco_c(u_maze: GoalEnv, reset, step) -> None:
    """One control step at a time from C's own state: 1e-5 where nothing touches, else 5 mm and 0.1 m/s."""
    random = np.random.default_rng(0)
    data = mujoco.MjData(u_maze.model)
    data.qpos[:] = [1.0, 1.0]
    touched, action = 0, np.zeros(2)
    for index in range(200):
        if index % 12 == 0:  # from the middle of a corridor, half of the steps are free
            mujoco.mj_resetData(u_maze.model, data)
            data.qpos[:] = [1.0, 1.0]
            action = random.uniform(-1, 1, 2)
        before = placed(u_maze, reset, [data.qpos.tolist()], [data.qvel.tolist()])
        after = np.asarray(step(before, jnp.asarray(action)[None]).info["state"][0])
        data.ctrl[:] = 4 * action
        contacts = 0
        for _ in range(u_maze.substeps):
            mujoco.mj_step(u_maze.model, data)
            contacts += data.ncon
        truth = np.concatenate([data.qpos, data.qvel])
        tolerance = np.array([5e-3, 5e-3, 0.1, 0.1]) if contacts else np.full(4, 1e-5)
        assert (np.abs(after - truth) <= tolerance).all(), (index, contacts, after, truth)
        touched += bool(contacts)
    assert 20 < touched < 180  # both regimes were looked at


def test_success_fires_within_the_radius_and_never_ends_the_episode(u_maze: GoalEnv, reset, step) -> None:
    state = placed(u_maze, reset, [[1.0, 1.0], [1.0, 1.0]])
    state = jax.vmap(u_maze.with_goal)(state, jnp.array([[1.0, 1.29], [1.0, 1.31]]))
    assert state.metrics["success"].tolist() == [1.0, 0.0]
    state = step(state, jnp.zeros((2, 2)))
    assert state.metrics["success"].tolist() == [1.0, 0.0]
    assert state.reward.tolist() == [1.0, 0.0]
    assert state.done.tolist() == [0.0, 0.0]
    np.testing.assert_allclose(state.metrics["distance"], [0.29, 0.31], atol=1e-5)


def test_a_hand_made_controller_reaches_the_far_corner(u_maze: GoalEnv, reset, step) -> None:
    state = placed(u_maze, reset, [[1.0, 1.0]])
    state = jax.vmap(u_maze.with_goal)(state, jnp.array([[3.0, 1.0]]))
    success = 0.0
    for waypoint in ([1.0, 3.0], [3.0, 3.0], [3.0, 1.0]):
        for _ in range(50):
            here, velocity = jnp.split(state.info["state"], 2, axis=-1)
            state = step(state, 3 * (jnp.array([waypoint]) - here) - velocity)
            success += float(state.metrics["success"][0])
    assert success > 10


def test_it_is_a_brax_environment_that_brax_can_wrap(u_maze: GoalEnv) -> None:
    assert isinstance(u_maze, Env)
    cart = Cart("cart")  # whose step compiles sooner
    wrapped = wrap(cart, episode_length=3, action_repeat=1)
    state = jax.jit(wrapped.reset)(jax.random.split(jax.random.PRNGKey(0), 2))  # brax counts on raw keys
    advance = jax.jit(wrapped.step)
    done = []
    for _ in range(4):
        state = advance(state, jnp.zeros((2, 1)))
        done.append(state.done.tolist())
    assert done == [[0, 0], [0, 0], [1, 1], [0, 0]]
    assert state.obs.shape == (2, cart.observation_size)


def test_unknown_names_list_the_known_ones_nearest_first() -> None:
    with pytest.raises(registry.UnknownNameError, match="'point_umaze'.*nearest first: point_u_maze, "):
        registry.make("point_umaze")
    with pytest.raises(registry.UnknownNameError, match="implementation 'jaxx'.*jax"):
        registry.make("point_u_maze", impl="jaxx")
