"""Commanded goals: fresh goals of the task, which replace the hindsight goals in some of the actor's rows.

A hindsight goal is a place that the robot has reached. While a robot cannot walk, all of these places are near it, and
the actor never learns what to do about a distant goal. A commanded goal comes from the task itself, as at the start of
an episode. It needs no later state, because the actor learns from the critic's score alone; the critic never sees it.
"""

import jax
import jax.numpy as jnp

from training.envs.core.goal_env import GoalEnv


def sample(key: jax.Array, env: GoalEnv, shape: tuple[int, ...]) -> jax.Array | None:
    """Return goals [*shape, goal_dim], each from `env.sample_goal` with its own key; None if there are none."""
    if 0 in shape:
        return None
    goals = jax.vmap(env.sample_goal)(jax.random.split(key, shape).reshape(-1))
    return goals.reshape(*shape, -1)


def substitute(rows: jax.Array, commanded: jax.Array | None) -> jax.Array:
    """Return `rows: [B, ...]` with `commanded: [N, ...]` in place of the first N; with None, return them unchanged."""
    return rows if commanded is None else jnp.concatenate([commanded, rows[len(commanded) :]])
