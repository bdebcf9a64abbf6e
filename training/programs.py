"""The state of a training run, and the compiled programs that change it: `collect`, `learn` and `evaluate`."""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from policy.networks import init_policy
from policy.quaternions import canonical_signs
from training import divergence, eval_goals, evaluation, rollout, state_statistics
from training.algorithms.algorithm import Algorithm, Metrics, TrainState
from training.algorithms.crl.update import CRL
from training.config import TrainConfig
from training.data import commanded_goals, hindsight, replay_buffer
from training.envs.core.goal_env import GoalEnv

_MOST_STEPS_PER_BLOCK = 16


class RunState(NamedTuple):
    """Everything that a run resumes from; a snapshot on disk."""

    train_state: TrainState
    rollout: rollout.RolloutState
    replay: replay_buffer.ReplayBuffer
    key: jax.Array
    iteration: jax.Array  # int32, unrolls done
    divergence: divergence.Divergence  # since the last evaluation
    statistics: state_statistics.Statistics
    pending_updates: jax.Array  # int32, gradient steps of the current round that are not taken yet


class Programs(NamedTuple):
    """The compiled programs of a run."""

    collect: Callable[[RunState], RunState]  # one unroll into the replay buffer; begins a round of gradient steps
    learn: Callable[[RunState, jax.Array], tuple[RunState, Metrics]]  # the round's next gradient steps, see `learn`
    evaluate: Callable[..., evaluation.Evaluation]  # (params, key=...), or with source=... for other actions


def initial_state(config: TrainConfig, env: GoalEnv) -> RunState:
    """Return the state that a new run of `config` starts from."""
    key, params_key, rollout_key = jax.random.split(jax.random.key(config.seed), 3)
    spec = config.policy_spec(env)
    state = RunState(
        # Compiled: one operation after the other, it takes seconds.
        train_state=CRL.from_config(config, env).init(jax.jit(init_policy, static_argnums=1)(params_key, spec)),
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
        divergence=divergence.nothing(config.num_envs),
        statistics=state_statistics.nothing(env.state_size),
        pending_updates=jnp.int32(0),
    )
    return jax.tree.map(_with_fixed_type, state)


def _with_fixed_type(leaf: jax.Array) -> jax.Array:
    """Return an array whose type is fixed, as one from a snapshot is: a resumed run then uses the same programs."""
    return leaf.astype(leaf.dtype) if jax.typeof(leaf).weak_type else leaf


def saved_part(config: TrainConfig, state: RunState) -> RunState:
    """Return what goes into a snapshot."""
    return state if config.snapshot_replay else state._replace(replay=None)  # pyright: ignore[reportArgumentType]


def is_complete(config: TrainConfig, state: RunState) -> bool:
    """Return whether the run has taken all its steps."""
    return int(state.iteration) >= config.iterations and not int(state.pending_updates)


def evaluation_due(config: TrainConfig, state: RunState) -> bool:
    """Return whether an epoch ends at `state`."""
    done = int(state.iteration)
    due = done >= config.iterations or (done > 0 and done % config.iterations_per_epoch == 0)
    return due and not int(state.pending_updates)


def env_steps(config: TrainConfig, state: RunState) -> int:
    """Return the environment steps that the policy has learned from, which are also its version.

    Within a round of gradient steps, the steps of the last unroll count in proportion to the round.
    """
    steps, pending = int(state.iteration) * config.steps_per_iteration, int(state.pending_updates)
    return steps - -(-pending * config.steps_per_iteration // config.updates_per_unroll)


def has_learned(state: RunState) -> bool:
    """Return whether a gradient step has been taken."""
    counts = optax.tree_utils.tree_get_all_with_path(state.train_state.optimizer, "count")
    return any(int(count) for _, count in counts)


def compile_programs(
    config: TrainConfig, env: GoalEnv, state: RunState, *, eval_env: GoalEnv | None = None
) -> Programs:
    """Compile the programs of a run in parallel, for states shaped like `state`.

    `collect` and `learn` donate their argument's buffers: do not use a state again after passing it in.

    Args:
        eval_env: the environment to evaluate on; None builds the one that `config` names.
    """
    eval_env = eval_env or evaluation.make_env(config, env)
    evaluate = functools.partial(
        evaluation.evaluate,
        eval_env,
        episodes=config.eval_episodes,
        episode_length=config.episode_length,
        goals=eval_goals.load(config, eval_env),
    )
    source = evaluation.ActionSource.policy(config.eval_episodes)
    algorithm = CRL.from_config(config, env)
    lowered = (
        jax.jit(functools.partial(collect, config, env), donate_argnums=0).lower(state),
        jax.jit(functools.partial(learn, config, env, algorithm), donate_argnums=0).lower(state, jnp.int32(1)),
        jax.jit(evaluate).lower(state.train_state.params, key=evaluation.evaluation_key(config.seed, 0), source=source),
    )
    pool = ThreadPoolExecutor(len(lowered))
    try:
        collect_program, learn_program, evaluate_program = pool.map(lambda program: program.compile(), lowered)
        return Programs(collect_program, learn_program, functools.partial(evaluate_program, source=source))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # so that an interrupt does not wait for the compiler


def collect(config: TrainConfig, env: GoalEnv, state: RunState) -> RunState:
    """Run every environment for one unroll, and insert the steps into the replay buffer.

    A round of gradient steps follows if the buffer held `min_replay_size` steps before. The round before it must be
    complete.
    """
    key, collect_key = jax.random.split(state.key)
    rollout_state, unroll = rollout.collect(
        env,
        state.train_state.params,
        state.rollout,
        key=collect_key,
        unroll_length=config.unroll_length,
        episode_length=config.episode_length,
        resample_goal_probability=config.resample_goal_probability,
        resample_at_goal_probability=config.resample_at_goal_probability,
    )
    # Without any valid step so far the replay buffer is empty, and stays so.
    replay = replay_buffer.insert(state.replay, unroll.steps, usable=unroll.any_kept)
    # The networks get states with these signs, see `policy.acting`.
    states = canonical_signs(unroll.steps.state, state.train_state.params.quaternions.state)
    statistics = state_statistics.add(
        state.statistics, states, valid=unroll.valid, ready=replay.held >= config.min_replay_size
    )
    return RunState(
        train_state=state.train_state if config.init_from else _normalize_from_now_on(state, statistics),
        rollout=rollout_state,
        replay=replay,
        key=key,
        iteration=state.iteration + 1,
        pending_updates=jnp.where(state.replay.held >= config.min_replay_size, config.updates_per_unroll, 0),
        divergence=divergence.add(state.divergence, unroll.diverged),
        statistics=statistics,
    )


def _normalize_from_now_on(state: RunState, statistics: state_statistics.Statistics) -> TrainState:
    """Return the trainer state. If the statistics were frozen just now, states are normalized with them from now on.

    Not for a run that starts from a published policy: its networks were trained with that policy's statistics.
    """
    params = state.train_state.params
    if params.normalization is None:
        return state.train_state
    frozen_now = (state.statistics.prefill.rows == 0) & (statistics.prefill.rows > 0)
    frozen = state_statistics.normalization(statistics.prefill)
    chosen = jax.tree.map(lambda new, old: jnp.where(frozen_now, new, old), frozen, params.normalization)
    return state.train_state._replace(params=params._replace(normalization=chosen))


def learn(
    config: TrainConfig, env: GoalEnv, algorithm: Algorithm, state: RunState, updates: jax.Array
) -> tuple[RunState, Metrics]:
    """Take the next gradient steps of the current round, on batches of the replay buffer.

    The steps of a round read batches and keys by their number within the round. Therefore a round ends with the same
    bits in one slice or in several.

    Args:
        updates: int32, gradient steps to take; rounded up to a multiple of `steps_per_block`, and at most what the
            round has left.

    Returns:
        The new state, and the metrics of each gradient step of the round, [updates_per_unroll]: 0 where this call did
        not take the step.
    """
    key, pairs_key, update_key, goals_key = jax.random.split(state.key, 4)
    whole, block = config.updates_per_unroll, steps_per_block(config)
    pairs = hindsight.sample_pairs(
        pairs_key,
        state.replay,
        (whole, config.batch_size),
        discount=config.discount,
        rows_per_episode=config.rows_per_episode,
    )
    goals = commanded_goals.sample(goals_key, env, (whole, config.commanded_rows))
    inputs = (pairs, goals, jax.random.split(update_key, whole))

    def one_update(
        train_state: TrainState, xs: tuple[replay_buffer.Pairs, Any, jax.Array]
    ) -> tuple[TrainState, Metrics]:
        pairs, commanded_goal, noise_key = xs
        batch = replay_buffer.gather(state.replay, pairs)._replace(commanded_goal=commanded_goal)
        return algorithm.update(train_state, batch, key=noise_key)

    start = whole - state.pending_updates
    stop = jnp.minimum(start + (updates + block - 1) // block * block, whole)
    train_state, metrics = _run_slice(one_update, state.train_state, inputs, start=start, stop=stop, block=block)
    learned = state._replace(train_state=train_state, pending_updates=whole - stop)
    return learned._replace(
        key=jax.random.wrap_key_data(
            jnp.where(learned.pending_updates == 0, jax.random.key_data(key), jax.random.key_data(state.key))
        )
    ), metrics


def steps_per_block(config: TrainConfig) -> int:
    """Return how many gradient steps always run together.

    On a GPU, each turn of a loop whose length is not known to the compiler waits for the device. A block of a fixed
    length makes that wait rare. A CPU has no such cost.
    """
    if jax.default_backend() == "cpu":
        return 1
    return max(size for size in range(1, _MOST_STEPS_PER_BLOCK + 1) if config.updates_per_unroll % size == 0)


def _run_slice(
    step: Callable[[Any, Any], tuple[Any, Metrics]],
    carry: Any,
    inputs: Any,
    *,
    start: jax.Array,
    stop: jax.Array,
    block: int,
) -> tuple[Any, Metrics]:
    """Run `step` as `jax.lax.scan` does, but only on the inputs from `start` to `stop`, both multiples of `block`.

    Args:
        inputs: leading axis [steps].

    Returns:
        The carry, and the steps' results, leading axis [steps]: 0 outside the slice.
    """

    def one_step(number: jax.Array, carried: tuple[Any, Metrics]) -> tuple[Any, Metrics]:
        carry, results = carried
        carry, result = step(carry, jax.tree.map(lambda leaf: leaf[number], inputs))
        return carry, jax.tree.map(lambda every, one: every.at[number].set(one), results, result)

    def one_block(number: jax.Array, carried: tuple[Any, Metrics]) -> tuple[Any, Metrics]:
        carry, results = carried
        first = number * block
        rows = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, block), inputs)
        carry, new = jax.lax.scan(step, carry, rows)
        update = jax.lax.dynamic_update_slice_in_dim
        return carry, jax.tree.map(lambda every, some: update(every, some, first, axis=0), results, new)

    _, shapes = jax.eval_shape(functools.partial(jax.lax.scan, step), carry, inputs)
    nothing = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    return jax.lax.fori_loop(start // block, stop // block, one_block if block > 1 else one_step, (carry, nothing))
