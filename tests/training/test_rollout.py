"""Rollouts on an environment whose every number can be foretold."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parameters import fresh_params
from tests.training.counter import SPEC, Counter
from training import rollout
from training.envs.core.goal_env import GoalEnv


@pytest.fixture(scope="module")
def params():
    return fresh_params(0, SPEC)


def collect(env: GoalEnv, params, *, unroll_length: int, episode_length: int = 10, redraw: float = 0.0, robots=None):
    robots = robots or rollout.start(env, jax.random.key(1), environments=6)
    robots, unroll = rollout.collect(
        env,
        params,
        robots,
        key=jax.random.key(2),
        unroll_length=unroll_length,
        episode_length=episode_length,
        resample_goal_probability=redraw,
        resample_at_goal_probability=redraw,
    )
    assert bool(unroll.valid.all())
    return robots, unroll.steps


def test_episodes_end_at_their_length_with_a_fresh_start_and_goal_each(params) -> None:
    robots, steps = collect(Counter(), params, unroll_length=25)
    assert steps.episode[:, 0].tolist() == [0] * 10 + [1] * 10 + [2] * 5
    counted = np.asarray(steps.state[..., 0] - steps.state[..., 1])
    np.testing.assert_allclose(counted[:, 0], [*range(10), *range(10), *range(5)], atol=1e-5)
    starts = np.asarray(steps.state[..., 1])[[0, 10, 20]]
    assert len(np.unique(starts)) == starts.size, "every reset of every environment draws its own start"
    assert robots.age.tolist() == [5] * 6
    assert robots.episode.tolist() == [2] * 6


def test_a_termination_ends_an_episode_early(params) -> None:
    _, steps = collect(Counter(limit=3.0), params, unroll_length=8)
    # from a start in (0, 1) the third step ends at 3 or more
    assert steps.episode[:, 0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2]


def test_a_rollout_goes_on_where_the_last_one_stopped(params) -> None:
    env = Counter()
    robots, first = collect(env, params, unroll_length=7)
    _, second = collect(env, params, unroll_length=7, robots=robots)
    joined = np.concatenate([first.episode, second.episode])[:, 0]
    assert joined.tolist() == [0] * 10 + [1] * 4


@pytest.mark.parametrize(("away", "at_goal"), [(0.0, 1.0), (1.0, 0.0), (0.3, 0.6)])
def test_goals_are_redrawn_as_often_as_asked_and_the_physics_is_left_alone(away: float, at_goal: float) -> None:
    env = Counter()
    robots = rollout.start(env, jax.random.key(1), environments=8000)
    here = robots.env_state.info["state"][:, :1]
    half = jnp.arange(8000)[:, None] % 2 == 0  # every other robot is at its goal
    robots = robots._replace(
        env_state=jax.vmap(env.with_goal)(robots.env_state, jnp.where(half, here, robots.env_state.info["goal"]))
    )
    after = rollout.resample_goals(
        env, robots.env_state, key=jax.random.key(3), probability=away, at_goal_probability=at_goal
    )
    changed = np.asarray(after.info["goal"] != robots.env_state.info["goal"])[:, 0]
    assert abs(changed[::2].mean() - at_goal) < 0.04  # five standard deviations
    assert abs(changed[1::2].mean() - away) < 0.04
    np.testing.assert_array_equal(after.pipeline_state, robots.env_state.pipeline_state)
    np.testing.assert_allclose(
        after.metrics["distance"], np.abs(after.info["state"][:, 0] - after.info["goal"][:, 0]), atol=1e-6
    )


def test_facts_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Counter().spec.name = "other"  # pyright: ignore[reportAttributeAccessIssue]
