"""The state of a training run, and the compiled programs that change it: `collect`, `learn` and `evaluate`."""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from policy.networks import init_policy
from training import evaluation, rollout
from training.algorithms.algorithm import Algorithm, Metrics, TrainState
from training.algorithms.crl.update import CRL
from training.config import TrainConfig
from training.data import commanded_goals, hindsight, replay_buffer
from training.envs.core.goal_env import GoalEnv


class RunState(NamedTuple):
    """Everything that a run resumes from; a snapshot on disk."""

    train_state: TrainState
    rollout: rollout.RolloutState
    replay: replay_buffer.ReplayBuffer
    key: jax.Array
    iteration: jax.Array  # int32, unrolls done


class Programs(NamedTuple):
    """The compiled programs of a run."""

    collect: Callable[[RunState], RunState]  # one unroll into the replay buffer
    learn: Callable[[RunState], tuple[RunState, Metrics]]  # a round of gradient steps, metrics [steps]
    evaluate: Callable[..., evaluation.Evaluation]  # (params, key=...)


def initial_state(config: TrainConfig, env: GoalEnv) -> RunState:
    """Return the state that a new run of `config` starts from."""
    key, params_key, rollout_key = jax.random.split(jax.random.key(config.seed), 3)
    return RunState(
        train_state=CRL.from_config(config, env).init(init_policy(params_key, config.policy_spec(env))),
        rollout=jax.jit(functools.partial(rollout.start, env, environments=config.num_envs))(rollout_key),
        replay=replay_buffer.empty(
            config.max_replay_size,
            unroll_length=config.unroll_length,
            environments=config.num_envs,
            state_dim=env.state_size,
            action_dim=env.action_size,
        ),
        key=key,
        iteration=jnp.int32(0),
    )


def compile_programs(config: TrainConfig, env: GoalEnv, state: RunState) -> Programs:
    """Compile the programs of a run in parallel, for states shaped like `state`.

    `collect` and `learn` donate their argument's buffers: do not use a state again after passing it in.
    """
    evaluate = functools.partial(
        evaluation.evaluate,
        evaluation.make_env(config, env),
        episodes=config.eval_episodes,
        episode_length=config.episode_length,
    )
    algorithm = CRL.from_config(config, env)
    lowered = (
        jax.jit(functools.partial(collect, config, env), donate_argnums=0).lower(state),
        jax.jit(functools.partial(learn, config, env, algorithm), donate_argnums=0).lower(state),
        jax.jit(evaluate).lower(state.train_state.params, key=evaluation.evaluation_key(config.seed, 0)),
    )
    pool = ThreadPoolExecutor(len(lowered))
    try:
        return Programs(*pool.map(lambda program: program.compile(), lowered))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # so that an interrupt does not wait for the compiler


def collect(config: TrainConfig, env: GoalEnv, state: RunState) -> RunState:
    """Run every environment for one unroll, and insert the steps into the replay buffer."""
    key, collect_key = jax.random.split(state.key)
    rollout_state, steps = rollout.collect(
        env,
        state.train_state.params,
        state.rollout,
        key=collect_key,
        unroll_length=config.unroll_length,
        episode_length=config.episode_length,
        resample_goal_probability=config.resample_goal_probability,
        resample_at_goal_probability=config.resample_at_goal_probability,
    )
    return RunState(
        train_state=state.train_state,
        rollout=rollout_state,
        replay=replay_buffer.insert(state.replay, steps),
        key=key,
        iteration=state.iteration + 1,
    )


def learn(config: TrainConfig, env: GoalEnv, algorithm: Algorithm, state: RunState) -> tuple[RunState, Metrics]:
    """Take a round of gradient steps on batches of the replay buffer; return the metrics of each, [steps]."""
    key, pairs_key, update_key, goals_key = jax.random.split(state.key, 4)
    updates = config.updates_per_unroll
    pairs = hindsight.sample_pairs(
        pairs_key,
        state.replay,
        (updates, config.batch_size),
        discount=config.discount,
        rows_per_episode=config.rows_per_episode,
    )
    goals = commanded_goals.sample(goals_key, env, (updates, config.commanded_rows))

    def one_update(
        train_state: TrainState, xs: tuple[replay_buffer.Pairs, Any, jax.Array]
    ) -> tuple[TrainState, Metrics]:
        pairs, commanded_goal, noise_key = xs
        batch = replay_buffer.gather(state.replay, pairs)._replace(commanded_goal=commanded_goal)
        return algorithm.update(train_state, batch, key=noise_key)

    xs = (pairs, goals, jax.random.split(update_key, updates))
    train_state, metrics = jax.lax.scan(one_update, state.train_state, xs)
    return state._replace(train_state=train_state, key=key), metrics
