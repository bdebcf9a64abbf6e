"""Many environments in step: act, record, start afresh where an episode ends.

Every reset draws a new start and a new goal. Besides, the commanded goal may be redrawn at random moments within an
episode: without it, cells that lie far from the start are hardly ever practised in a maze, because a young policy has
to get there first. And a good policy would spend most of an episode at rest at its goal, until the replay held little
else, and the critic would forget the far cells: a goal that is reached may be redrawn sooner.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from policy import acting
from policy.networks import ResidualNetwork
from training.envs import physics
from training.envs.base import GoalEnv, State
from training.replay import Steps


class Robots(NamedTuple):
    """All environments at one moment, leading axis [environments]."""

    env: State
    episode: jax.Array  # int32, how many episodes this environment has begun before this one
    age: jax.Array  # int32, steps taken in this episode


def start(env: GoalEnv, key: jax.Array, *, environments: int) -> Robots:
    """Every environment at a fresh start."""
    nothing = jnp.zeros(environments, jnp.int32)
    return Robots(jax.vmap(env.reset)(jax.random.split(key, environments)), episode=nothing, age=nothing)


def collect(
    env: GoalEnv,
    actor: ResidualNetwork,
    robots: Robots,
    *,
    key: jax.Array,
    unroll: int,
    episode_length: int,
    goal_redraw_probability: float,
    at_goal_redraw_probability: float,
) -> tuple[Robots, Steps]:
    """Take `unroll` steps with actions sampled from `actor`; return the robots after them and the steps taken.

    Args:
        episode_length: steps after which an episode ends if nothing ended it before.
        goal_redraw_probability: chance, at a step away from the goal, that the commanded goal is drawn anew.
        at_goal_redraw_probability: the same at a step within the success radius.
    """

    def one_step(robots: Robots, step_key: jax.Array) -> tuple[Robots, Steps]:
        redraw_key, noise_key, reset_key = jax.random.split(step_key, 3)
        current = redraw_goals(
            env,
            robots.env,
            key=redraw_key,
            probability=goal_redraw_probability,
            at_goal_probability=at_goal_redraw_probability,
        )
        state = current.info["state"]
        distribution = acting.action_distribution(actor, state, current.info["goal"])
        action, _ = acting.sample_action(distribution, jax.random.normal(noise_key, distribution.mean.shape))
        moved = Robots(jax.vmap(env.step)(current, action), episode=robots.episode, age=robots.age + 1)
        ended = (moved.env.done > 0) | (moved.age >= episode_length)
        return restart_where(env, ended, moved, key=reset_key), Steps(state, action, robots.episode)

    return jax.lax.scan(one_step, robots, jax.random.split(key, unroll))


def redraw_goals(
    env: GoalEnv, current: State, *, key: jax.Array, probability: float, at_goal_probability: float
) -> State:
    """Draw the commanded goal anew with a probability that depends on whether it is reached; the physics stays."""
    environments = current.done.shape[0]
    chance_key, goal_key = jax.random.split(key)
    chance = jnp.where(current.metrics["success"] > 0, at_goal_probability, probability)
    chosen = jax.random.bernoulli(chance_key, chance)
    fresh = jax.vmap(env.sample_goal)(jax.random.split(goal_key, environments))
    return jax.vmap(env.with_goal)(current, jnp.where(chosen[:, None], fresh, current.info["goal"]))


def restart_where(env: GoalEnv, ended: jax.Array, robots: Robots, *, key: jax.Array) -> Robots:
    """Begin a new episode, with a fresh start and goal, in the environments where `ended: [environments]` is true."""
    environments = ended.shape[0]
    fresh = jax.vmap(env.reset)(jax.random.split(key, environments))

    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(ended.reshape(-1, *(1,) * (old.ndim - 1)), new, old)

    chosen: Any = jax.tree.map(choose, fresh, robots.env)
    kept = physics.keep_overflow(chosen.pipeline_state, ended=robots.env.pipeline_state)
    return Robots(
        env=chosen.replace(pipeline_state=kept),
        episode=robots.episode + ended,
        age=jnp.where(ended, 0, robots.age),
    )
