"""Hindsight: which later state of an episode a step is taught to have been heading for.

A step is paired with a state of its own episode k steps later, k >= 1 with probability proportional to discount^k,
among the steps the replay still holds (arXiv 2206.07568, section 4). The law is sampled by inverting its cumulative
sum, so no matrix of probabilities is ever built.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from training.replay import Moments, Replay, rows, steps_left

SELF_WEIGHT = 1e-5  # weight of k = 0, beside discount^k for the others: the last step of an episode has only itself


class Pairs(NamedTuple):
    """Steps and the later steps whose states become their goals."""

    step: Moments
    future: Moments


class Batch(NamedTuple):
    """What one update learns from. Row i of `goal` was reached from row i of `state` and `action`."""

    state: jax.Array  # [batch, state_dim]
    action: jax.Array  # [batch, action_dim]
    future_state: jax.Array  # [batch, state_dim]


def sample_pairs(key: jax.Array, replay: Replay, shape: tuple[int, ...], *, discount: float) -> Pairs:
    """Draw steps uniformly from all that the ring holds, and a future for each; all indices have shape `shape`."""
    age_key, environment_key, offset_key = jax.random.split(key, 3)
    environments = replay.steps.episode.shape[1]
    step = Moments(
        age=jax.random.randint(age_key, shape, 0, replay.held),
        environment=jax.random.randint(environment_key, shape, 0, environments),
    )
    uniform = jax.random.uniform(offset_key, shape)
    offset = future_offset(uniform, steps_left(replay, step), discount=discount)
    return Pairs(step, future=Moments(step.age + offset, step.environment))


def future_offset(uniform: jax.Array, left: jax.Array, *, discount: float) -> jax.Array:
    """The offset k for `uniform` in [0, 1) when `left` later steps are held, both [...].

    P(k) is proportional to discount^k for 1 <= k <= left and to SELF_WEIGHT for k = 0.
    """
    total = discount * (1 - discount**left) / (1 - discount)
    mass = uniform * (total + SELF_WEIGHT) - SELF_WEIGHT
    inverse = jnp.ceil(jnp.log1p(-mass * (1 - discount) / discount) / jnp.log(discount))
    offset = jnp.clip(inverse, 1, left).astype(jnp.int32)
    return jnp.where((mass < 0) | (left == 0), 0, offset)


def gather(replay: Replay, pairs: Pairs) -> Batch:
    """Fetch the rows that `pairs` name, and no others."""
    step, future = rows(replay, pairs.step), rows(replay, pairs.future)
    steps = replay.steps
    return Batch(state=steps.state[step], action=steps.action[step], future_state=steps.state[future])
