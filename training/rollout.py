"""Run many environments in step with a policy: act, record the steps, start a new episode where one ends.

Every reset draws a new start and a new goal. The commanded goal may also be resampled within an episode:

* At any step: early in training, a policy rarely reaches cells of a maze that are far from the start, so it rarely
  practices goals there.
* At the goal: a good policy would otherwise stay at its goal for most of an episode, the replay buffer would fill with
  such steps, and the critic would forget the distant cells.

A world whose physics diverges starts a new episode. The step that led there has no next state, so it is dropped. The
replay buffer has a slot for every step of every world, so the slot of a dropped step gets a copy of another step.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from policy import acting
from policy.networks import PolicyParams
from training.data.replay_buffer import Steps
from training.envs.core import physics
from training.envs.core.goal_env import GoalEnv, State


class RolloutState(NamedTuple):
    """All environments at one time step, leading axis [environments]."""

    env_state: State
    episode: jax.Array  # int32, episodes that this environment has completed
    age: jax.Array  # int32, steps taken in the current episode
    kept_state: jax.Array  # [environments, state_dim], state of the last step that was not dropped; NaN if none was
    kept_action: jax.Array  # [environments, action_dim], its action


class Unroll(NamedTuple):
    """Consecutive steps of all environments, [time, environments, ...]."""

    steps: Steps
    valid: jax.Array  # bool; where it is false, the step was dropped and is a copy of another one
    any_kept: jax.Array  # bool scalar; false if no step of the run was valid so far, so that there is nothing to copy
    diverged: jax.Array  # int32, what diverged in the step, as `GoalEnv.diverged_part` returns it; -1 for nothing


def start(env: GoalEnv, key: jax.Array, *, environments: int) -> RolloutState:
    """Reset `environments` environments."""
    nothing = jnp.zeros(environments, jnp.int32)
    env_state = jax.vmap(env.reset)(jax.random.split(key, environments))
    return RolloutState(
        env_state,
        episode=nothing,
        age=nothing,
        kept_state=jnp.full_like(env_state.info["state"], jnp.nan),
        kept_action=jnp.zeros((environments, env.action_size)),
    )


def collect(
    env: GoalEnv,
    params: PolicyParams,
    rollout_state: RolloutState,
    *,
    key: jax.Array,
    unroll_length: int,
    episode_length: int,
    resample_goal_probability: float,
    resample_at_goal_probability: float,
) -> tuple[RolloutState, Unroll]:
    """Take `unroll_length` steps with actions sampled from a policy; return the state after them, and the steps.

    A step is dropped if its state, its action or the state after it has diverged. Its world starts a new episode. The
    dropped step becomes a copy of the world's last valid one; before a world's first valid step, of another world's.

    Args:
        episode_length: steps after which an episode ends at the latest.
        resample_goal_probability: probability of resampling the commanded goal at a step away from it.
        resample_at_goal_probability: the same at a step within the success radius.
    """

    def one_step(before: RolloutState, step_key: jax.Array) -> tuple[RolloutState, tuple[Steps, jax.Array, jax.Array]]:
        resample_key, noise_key, reset_key = jax.random.split(step_key, 3)
        current = resample_goals(
            env,
            before.env_state,
            key=resample_key,
            probability=resample_goal_probability,
            at_goal_probability=resample_at_goal_probability,
        )
        state = current.info["state"]
        distribution = acting.action_distribution(params, state, current.info["goal"])
        action, _ = acting.sample_action(distribution, jax.random.normal(noise_key, distribution.mean.shape))
        next_state = jax.vmap(env.step)(current, action)
        sound_action = ~physics.diverged(action).any(axis=1)
        part = jax.vmap(env.diverged_part)(next_state)
        diverged = jnp.where(sound_action, part, -1)  # NaN in an action is a fault of the policy, not of the physics
        valid = sound_action & (part < 0)
        ended = (next_state.done > 0) | (before.age + 1 >= episode_length) | ~valid
        steps = _fill(Steps(state, action, before.episode), before, valid=valid)
        after = RolloutState(
            next_state,
            episode=before.episode + ~valid,  # of the dropped step; the new episode has the next number
            age=before.age + 1,
            kept_state=steps.state,
            kept_action=steps.action,
        )
        return restart_where(env, ended, after, key=reset_key), (steps, valid, diverged)

    after, (steps, valid, diverged) = jax.lax.scan(one_step, rollout_state, jax.random.split(key, unroll_length))
    steps, any_kept = _fill_from_others(steps)
    return after, Unroll(steps, valid, any_kept, diverged)


def resample_goals(
    env: GoalEnv, current: State, *, key: jax.Array, probability: float, at_goal_probability: float
) -> State:
    """Resample the commanded goals, each with a probability that depends on whether it is reached."""
    environments = current.done.shape[0]
    chance_key, goal_key = jax.random.split(key)
    chance = jnp.where(current.metrics["success"] > 0, at_goal_probability, probability)
    chosen = jax.random.bernoulli(chance_key, chance)
    fresh = jax.vmap(env.sample_goal)(jax.random.split(goal_key, environments))
    return jax.vmap(env.with_goal)(current, jnp.where(chosen[:, None], fresh, current.info["goal"]))


def _fill(steps: Steps, before: RolloutState, *, valid: jax.Array) -> Steps:
    """Replace each step that is not valid by the world's last one that was, as an episode of its own.

    The repeated step did happen. Because it is alone in its episode, it is never the hindsight goal of another step,
    and its own hindsight goal is its own state, as for the last step of any episode.
    """
    return Steps(
        state=jnp.where(valid[:, None], steps.state, before.kept_state),
        action=jnp.where(valid[:, None], steps.action, before.kept_action),
        episode=steps.episode + ~valid,
    )


def _fill_from_others(steps: Steps) -> tuple[Steps, jax.Array]:
    """Replace the dropped steps before a world's first valid one, whose states are NaN, by a step of another world.

    Args:
        steps: [time, environments, ...].

    Returns:
        The steps, and whether there was one to copy; if not, all states are 0.
    """
    kept = ~jnp.isnan(steps.state).any(axis=-1)
    time, world = jnp.unravel_index(jnp.argmax(kept), kept.shape)
    donor = jnp.where(kept.any(), steps.state[time, world], 0)
    return steps._replace(
        state=jnp.where(kept[..., None], steps.state, donor),
        action=jnp.where(kept[..., None], steps.action, steps.action[time, world]),
    ), kept.any()


def restart_where(env: GoalEnv, ended: jax.Array, rollout_state: RolloutState, *, key: jax.Array) -> RolloutState:
    """Start a new episode in the environments where `ended: [environments]` is true."""
    environments = ended.shape[0]
    fresh = jax.vmap(env.reset)(jax.random.split(key, environments))

    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(ended.reshape(-1, *(1,) * (old.ndim - 1)), new, old)

    chosen: Any = jax.tree.map(choose, fresh, rollout_state.env_state)
    with_flags = physics.keep_overflow(chosen.pipeline_state, ended=rollout_state.env_state.pipeline_state)
    return RolloutState(
        env_state=chosen.replace(pipeline_state=with_flags),
        episode=rollout_state.episode + ended,
        age=jnp.where(ended, 0, rollout_state.age),
        kept_state=rollout_state.kept_state,
        kept_action=rollout_state.kept_action,
    )
