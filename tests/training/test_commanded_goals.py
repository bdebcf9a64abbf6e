"""Commanded goals: where they come from, which rows they replace, and what a round of gradient steps draws."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import probes
from training import programs
from training.algorithms.algorithm import Metrics, TrainState
from training.config import TrainConfig
from training.data import commanded_goals, hindsight, replay_buffer
from training.data.replay_buffer import Batch


class Recorder:
    """An algorithm that learns nothing; its metrics are what it was given."""

    def init(self, params: Any) -> TrainState:
        return TrainState(params, jnp.zeros(()), ())

    def update(self, train_state: TrainState, batch: Batch, *, key: jax.Array) -> tuple[TrainState, Metrics]:
        fields = {name: value for name, value in batch._asdict().items() if value is not None}
        return train_state, {**fields, "noise": jax.random.normal(key, (3,))}


class FarGoals(probes.Line):
    """Its goals are at 10 to 11, where no robot of it ever is."""

    def sample_goal(self, key: jax.Array) -> jax.Array:
        return 10 + jax.random.uniform(key, (2,))


@pytest.fixture(scope="module")
def env() -> FarGoals:
    return FarGoals()


@pytest.fixture(scope="module")
def state(tiny: Callable[..., TrainConfig], env: FarGoals) -> programs.RunState:
    """The state of a run whose replay buffer holds random steps."""
    config = tiny(Path("x"))
    state = programs.initial_state(config, env)
    draw = np.random.default_rng(0).normal
    shape = (config.unroll_length, config.num_envs)
    steps = replay_buffer.Steps(
        jnp.asarray(draw(size=(*shape, env.state_size)), jnp.float32),
        jnp.asarray(draw(size=(*shape, env.action_size)), jnp.float32),
        jnp.zeros(shape, jnp.int32),
    )
    return state._replace(replay=replay_buffer.insert(state.replay, steps))


def learn(config: TrainConfig, env: FarGoals, state: programs.RunState) -> dict[str, np.ndarray]:
    """What an algorithm is given in one round, [updates, ...] each."""
    round_begun = state._replace(pending_updates=jnp.int32(config.updates_per_unroll))
    every = jnp.int32(config.updates_per_unroll)
    _, given = jax.jit(lambda state: programs.learn(config, env, Recorder(), state, every))(round_begun)
    return {name: np.asarray(value) for name, value in given.items()}


def test_a_goal_is_drawn_from_the_task_for_every_row(env: FarGoals) -> None:
    goals = commanded_goals.sample(jax.random.key(0), env, (3, 5))
    assert goals is not None
    expected = [env.sample_goal(key) for key in jax.random.split(jax.random.key(0), 15)]
    np.testing.assert_array_equal(goals.reshape(15, 2), np.stack(expected))
    assert len(np.unique(goals[..., 0])) == 15
    assert commanded_goals.sample(jax.random.key(0), env, (3, 0)) is None


def test_the_first_rows_are_replaced() -> None:
    rows = jnp.arange(8.0).reshape(4, 2)
    new = -jnp.ones((3, 2))
    assert commanded_goals.substitute(rows, new).tolist() == [[-1, -1], [-1, -1], [-1, -1], [6, 7]]
    assert commanded_goals.substitute(rows, jnp.concatenate([new, new[:1]])).tolist() == [[-1, -1]] * 4
    assert commanded_goals.substitute(rows, None) is rows


@pytest.mark.parametrize(("share", "rows"), [(0.25, 4), (1.0, 16)])
def test_every_batch_of_a_round_has_its_own_commanded_goals(
    tiny: Callable[..., TrainConfig], env: FarGoals, state: programs.RunState, share: float, rows: int
) -> None:
    plain = learn(tiny(Path("x")), env, state)
    given = learn(tiny(Path("x"), commanded_goals=share), env, state)
    goals = given.pop("commanded_goal")
    assert goals.shape == (3, rows, 2)
    assert ((goals >= 10) & (goals < 11)).all()
    assert len(np.unique(goals[..., 0])) == 3 * rows
    for name, value in plain.items():  # the critic's rows and the noise are those of a run without
        np.testing.assert_array_equal(given[name], value)


def test_without_commanded_goals_a_round_draws_what_it_drew_before_the_option(
    tiny: Callable[..., TrainConfig], env: FarGoals, state: programs.RunState
) -> None:
    given = learn(tiny(Path("x")), env, state)
    assert set(given) == {"state", "action", "future_state", "noise"}
    _, pairs_key, update_key = jax.random.split(state.key, 3)
    pairs = hindsight.sample_pairs(pairs_key, state.replay, (3, 16), discount=0.99)
    batch = replay_buffer.gather(state.replay, pairs)
    np.testing.assert_array_equal(given["state"], batch.state)
    np.testing.assert_array_equal(given["future_state"], batch.future_state)
    noise = [jax.random.normal(key, (3,)) for key in jax.random.split(update_key, 3)]
    np.testing.assert_array_equal(given["noise"], np.stack(noise))


def test_a_round_draws_its_rows_in_groups_of_an_episode(
    tiny: Callable[..., TrainConfig], env: FarGoals, state: programs.RunState
) -> None:
    """One episode per environment here, so the rows of a group are of one environment."""
    grouped = learn(tiny(Path("x"), rows_per_episode=4), env, state)["state"]
    held = np.asarray(state.replay.steps.state)[: int(state.replay.held)]
    environment = {tuple(row): index for index in range(held.shape[1]) for row in held[:, index]}
    groups = np.array([[environment[tuple(row)] for row in batch] for batch in grouped]).reshape(-1, 4)
    assert (groups == groups[:, :1]).all()
    assert len(np.unique(groups)) > 2
