"""The environments as a user of Gymnasium meets them."""

import copy
import os
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler

import gymnasium
import jax
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from tests.training.cart import Cart
from training.envs import gymnasium_adapter, registry
from training.envs.rendering import camera


@pytest.fixture(scope="module")
def maze() -> Iterator[gymnasium.Env]:
    env = gymnasium.make("kilolayer/point_u_maze-v0")
    yield env
    env.close()


def test_every_environment_can_be_made_and_lasts_as_long_as_ours() -> None:
    gymnasium_adapter.register()  # once more, for what another test may have added
    specs = {identity: spec for identity, spec in gymnasium.registry.items() if spec.namespace == "kilolayer"}
    assert {f"kilolayer/{name}-v0" for name in registry.names()} <= specs.keys()
    for name, entry in registry.DEFAULT.entries.items():
        assert specs[f"kilolayer/{name}-v0"].max_episode_steps == entry.episode_length
    ant = gymnasium.make("kilolayer/ant-v0")
    assert {part: space.shape for part, space in ant.observation_space.items()} == {
        "state": (29,),
        "achieved_goal": (2,),
        "desired_goal": (2,),
    }
    assert ant.action_space == gymnasium.spaces.Box(-1, 1, (8,), np.float32)
    assert ant.unwrapped.metadata["render_fps"] == pytest.approx(20)


# of a state's size nothing is known; Gymnasium thinks that there is always something
@pytest.mark.filterwarnings("ignore:.*A Box observation space minimum value is -infinity:UserWarning")
@pytest.mark.filterwarnings("ignore:.*A Box observation space maximum value is infinity:UserWarning")
def test_gymnasium_finds_nothing_to_say(maze: gymnasium.Env) -> None:
    check_env(maze.unwrapped, skip_render_check=not can_draw())


def can_draw() -> bool:
    try:
        camera.make_ready()
    except camera.CannotDrawError:
        return False
    return True


def test_a_step_is_that_of_mujoco_c(maze: gymnasium.Env) -> None:
    observation, _ = maze.reset(seed=5)
    model = maze.unwrapped.env.model
    data = mujoco.MjData(model)
    data.qpos[:] = observation["state"][:2]
    for action in ([1.0, 0.5], [-0.3, 1.0], [0.2, -3.0]):
        observation, *_ = maze.step(np.array(action, np.float32))
        data.ctrl[:] = 4 * np.clip(action, -1, 1)
        mujoco.mj_step(model, data, nstep=4)
        np.testing.assert_allclose(observation["state"], [*data.qpos, *data.qvel], atol=1e-4)
        np.testing.assert_array_equal(observation["achieved_goal"], observation["state"][:2])


def test_rewards_of_rows_by_hand(maze: gymnasium.Env) -> None:
    achieved = np.array([[1, 1], [1, 1], [0, 0], [3, 1]], np.float32)
    desired = np.array([[1.29, 1], [1.31, 1], [0.2, 0.2], [1, 3]], np.float32)
    rewards = maze.unwrapped.compute_reward(achieved, desired, [{}] * 4)
    np.testing.assert_array_equal(rewards, [1, 0, 1, 0])
    assert rewards.dtype == np.float32
    assert maze.unwrapped.compute_reward(achieved[0], desired[0], {}) == 1
    with pytest.raises(ValueError, match=r"achieved_goal must have shape \[..., 2\], got \[4, 1\]"):
        maze.unwrapped.compute_reward(achieved[:, :1], desired, {})


def test_a_way_to_the_goal_is_rewarded_there_and_ends_at_the_time_limit(maze: gymnasium.Env) -> None:
    """The nearest goal cell lies to the +y of the start with nothing between them."""
    seed = next(seed for seed in range(100) if np.abs(maze.reset(seed=seed)[0]["desired_goal"] - [1, 2]).max() < 0.3)
    observation, info = maze.reset(seed=seed)
    goal = observation["desired_goal"].copy()
    rewards: list[float] = []
    for step in range(1, 101):
        to_goal, velocity = goal - observation["achieved_goal"], observation["state"][2:]
        observation, reward, terminated, truncated, info = maze.step((2 * to_goal - velocity).astype(np.float32))
        distance = np.linalg.norm(observation["achieved_goal"] - goal)
        near = bool(distance < 0.3)
        assert info == {"success": near, "is_success": near, "distance": pytest.approx(distance, abs=1e-6)}
        assert reward == maze.unwrapped.compute_reward(observation["achieved_goal"], goal, info) == info["success"]
        assert (terminated, truncated) == (False, step == 100)
        np.testing.assert_array_equal(observation["desired_goal"], goal)
        rewards.append(reward)
    assert rewards[0] == 0
    assert rewards[-50:] == [1] * 50


def test_episodes_follow_from_the_seed(maze: gymnasium.Env) -> None:
    def episodes(seed: int) -> np.ndarray:
        resets = (maze.reset(seed=seed), maze.reset(), maze.reset())
        return np.array([np.concatenate([*observation.values()]) for observation, _ in resets])

    np.testing.assert_array_equal(episodes(1), episodes(1))
    assert len(np.unique(np.concatenate([episodes(1), episodes(2)]), axis=0)) == 6


def test_a_goal_and_a_start_are_those_that_were_given(maze: gymnasium.Env) -> None:
    drawn, _ = maze.reset(seed=4)
    following, _ = maze.reset()
    given, info = maze.reset(seed=4, options={"goal": [3.0, 1.5]})
    np.testing.assert_array_equal(given["desired_goal"], np.float32([3.0, 1.5]))
    np.testing.assert_array_equal(given["state"], drawn["state"])
    distance = np.linalg.norm(drawn["achieved_goal"] - [3.0, 1.5])
    assert info["distance"] == pytest.approx(distance, abs=1e-6)
    given, _ = maze.reset(seed=4, options={"start": {"qpos": [1.25, 2.5]}})
    np.testing.assert_array_equal(given["state"], np.float32([1.25, 2.5, 0, 0]))
    np.testing.assert_array_equal(given["desired_goal"], drawn["desired_goal"])
    start = {"qpos": np.array([1.25, 2.5]), "qvel": (0.5, -0.5)}
    given, info = maze.reset(seed=4, options={"start": start, "goal": (1.25, 2.5)})
    np.testing.assert_array_equal(given["state"], np.float32([1.25, 2.5, 0.5, -0.5]))
    assert info["success"]
    np.testing.assert_array_equal(maze.step(np.zeros(2))[0]["desired_goal"], np.float32([1.25, 2.5]))
    np.testing.assert_array_equal(maze.reset()[0]["desired_goal"], following["desired_goal"])  # drawn as without them


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"goals": [1, 1]}, "options of a reset may have goal and start, got goals"),
        ({"goal": [1, 1, 1]}, "goal of a reset must be 2 finite numbers"),
        ({"goal": [1, np.nan]}, "goal of a reset must be 2 finite numbers"),
        ({"goal": "here"}, "goal of a reset must be 2 finite numbers, got 'here'"),
        ({"start": [1, 1]}, r"start must be a dictionary such as"),
        ({"start": {"qvel": [0, 0]}}, "start needs qpos"),
        ({"start": {}}, "start needs qpos"),
        ({"start": {"qpos": [1, 1], "velocity": [0, 0]}}, "start of a reset may have qpos and qvel, got velocity"),
        ({"start": {"qpos": [1]}}, "start qpos of a reset must be 2 finite numbers"),
        ({"start": {"qpos": [1, 1], "qvel": [1]}}, "start qvel of a reset must be 2 finite numbers"),
    ],
)
def test_options_that_cannot_be_honored_are_refused(
    maze: gymnasium.Env, options: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        maze.reset(options=options)


def pickled(env: gymnasium.Env) -> gymnasium.Env:
    """As a pool of processes sends it to another process."""
    return ForkingPickler.loads(ForkingPickler.dumps(env))


@pytest.mark.parametrize("duplicate", [pickled, copy.deepcopy, copy.copy])
def test_a_copy_goes_on_where_the_original_is(duplicate) -> None:
    original = gymnasium.make("kilolayer/point_u_maze-v0")
    original.reset(seed=3)
    original.step(np.ones(2))
    other = duplicate(original.unwrapped) if duplicate is copy.copy else duplicate(original)
    for action in ([0.5, -1.0], [1.0, 1.0]):
        ours, theirs = (env.step(np.array(action, np.float32)) for env in (original, other))
        np.testing.assert_equal(ours[0], theirs[0])
    if duplicate is not copy.copy:  # which shares the random numbers
        np.testing.assert_equal(original.reset()[0], other.reset()[0])
    assert other.unwrapped.env is original.unwrapped.env  # compiled once


def test_an_environment_of_training_can_be_copied_and_pickled() -> None:
    env = Cart("cart")
    for other in (pickled(env), copy.deepcopy(env)):
        state = jax.jit(other.step)(jax.jit(other.reset)(jax.random.key(0)), np.ones(1, np.float32))
        np.testing.assert_allclose(state.info["state"], [0.01, 0.1], rtol=1e-5)


@pytest.mark.parametrize(
    ("action", "complaint"),
    [
        ([0.0, np.nan], r"point_u_maze must be finite, but force y \[N\] is nan"),
        ([np.inf, 0.0], r"point_u_maze must be finite, but force x \[N\] is inf"),
        ([0.0, 0.0, 0.0], r"point_u_maze must have shape \(2,\), got \(3,\)"),
        ([[0.0, 0.0]], r"point_u_maze must have shape \(2,\), got \(1, 2\)"),
    ],
)
def test_what_is_no_action_is_named(maze: gymnasium.Env, action: list[float], complaint: str) -> None:
    maze.reset(seed=0)
    with pytest.raises(ValueError, match=complaint):
        maze.step(np.array(action))


def test_nothing_is_done_before_a_reset() -> None:
    fresh = gymnasium.make("kilolayer/point_u_maze-v0", render_mode="rgb_array").unwrapped
    for early in (lambda: fresh.step(np.zeros(2)), fresh.render):
        with pytest.raises(gymnasium.error.ResetNeeded):
            early()


def test_an_environment_of_ones_own_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pushed with 1 N from rest, the cart is 0.01 m times 1, 3, 6, 10, 15 ... from its start."""
    monkeypatch.setattr(registry, "DEFAULT", registry.EnvRegistry({"cart": registry.Entry(Cart, 6)}, variants={}))
    gymnasium_adapter.register()
    env = gymnasium.make("kilolayer/cart-v0")
    observation, info = env.reset(seed=0)
    assert observation == {"state": pytest.approx([0, 0]), "achieved_goal": [0], "desired_goal": pytest.approx([0.07])}
    assert info == {"success": False, "is_success": False, "distance": pytest.approx(0.07)}
    pushed = [env.step(np.ones(1)) for _ in range(5)]
    np.testing.assert_allclose([step[0]["achieved_goal"][0] for step in pushed], [0.01, 0.03, 0.06, 0.1, 0.15])
    assert [step[1] for step in pushed] == [0, 0, 1, 0, 0]
    assert [step[4]["is_success"] for step in pushed] == [False, False, True, False, False]  # at this step alone
    assert [step[2] for step in pushed] == [False, False, False, False, True]
    env.reset()
    assert [env.step(np.zeros(1))[2:4] for _ in range(6)] == [(False, False)] * 5 + [(False, True)]


def test_any_name_of_the_registry_can_be_made() -> None:
    gymnasium_adapter.register(["ant_u_maze_gen_1f2f3f"])
    assert gymnasium.spec("kilolayer/ant_u_maze_gen_1f2f3f-v0").max_episode_steps == 1000
    with pytest.raises(registry.UnknownNameError, match="unknown environment 'no_such'"):
        gymnasium_adapter.register(["no_such"])


def test_one_name_is_a_name_and_not_its_letters() -> None:
    gymnasium_adapter.register("ant_u_maze_gen_2f")
    assert gymnasium.spec("kilolayer/ant_u_maze_gen_2f-v0").max_episode_steps == 1000
    with pytest.raises(registry.UnknownNameError, match="unknown environment 'no_such'"):
        gymnasium_adapter.register(["ant_u_maze_gen_3f", "no_such"])
    assert "kilolayer/ant_u_maze_gen_3f-v0" not in gymnasium.registry


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"render_mode": "human"}, "render_mode must be \"rgb_array\" or None, got 'human'"),
        (
            {"render_mode": "rgb_array", "width": 0},
            "point_u_maze: width must be a whole number of pixels from 1 to 1920",
        ),
    ],
)
def test_a_picture_that_could_not_be_drawn_is_refused_when_the_environment_is_made(
    settings: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        gymnasium_adapter.GymnasiumEnv("point_u_maze", **settings)


def test_an_environment_in_a_fork_says_what_to_do_and_does_not_hang(
    maze: gymnasium.Env, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: ours + 1)
    with pytest.raises(RuntimeError, match='JAX does not survive a fork: .* vector_kwargs={"context": "spawn"}'):
        gymnasium_adapter.GymnasiumEnv("point_u_maze")
