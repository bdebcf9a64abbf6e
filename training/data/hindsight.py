"""Hindsight goals: pair each step with a later state of its own episode, which becomes its goal.

The later state lies k >= 1 steps ahead with probability proportional to discount^k, among the steps that the replay
buffer still holds (arXiv 2206.07568, section 4). k is sampled by inverting the cumulative distribution in closed form,
so no matrix of probabilities is built.
"""

import jax
import jax.numpy as jnp

from training.data.replay_buffer import Pairs, ReplayBuffer, StepIndex, steps_left

SELF_WEIGHT = 1e-5  # weight of k = 0, next to discount^k for the others: an episode's last step has only itself


def sample_pairs(key: jax.Array, replay: ReplayBuffer, shape: tuple[int, ...], *, discount: float) -> Pairs:
    """Sample steps uniformly from the buffer, and a later step for each; all indices have the shape `shape`."""
    age_key, environment_key, offset_key = jax.random.split(key, 3)
    environments = replay.steps.episode.shape[1]
    step = StepIndex(
        age=jax.random.randint(age_key, shape, 0, replay.held),
        environment=jax.random.randint(environment_key, shape, 0, environments),
    )
    uniform = jax.random.uniform(offset_key, shape)
    offset = future_offset(uniform, steps_left(replay, step), discount=discount)
    return Pairs(step, future=StepIndex(step.age + offset, step.environment))


def future_offset(uniform: jax.Array, left: jax.Array, *, discount: float) -> jax.Array:
    """Return the offset k for `uniform` in [0, 1) if `left` later steps are held, all [...].

    P(k) is proportional to discount^k for 1 <= k <= left and to SELF_WEIGHT for k = 0.
    """
    total = discount * (1 - discount**left) / (1 - discount)
    mass = uniform * (total + SELF_WEIGHT) - SELF_WEIGHT
    inverse = jnp.ceil(jnp.log1p(-mass * (1 - discount) / discount) / jnp.log(discount))
    offset = jnp.clip(inverse, 1, left).astype(jnp.int32)
    return jnp.where((mass < 0) | (left == 0), 0, offset)
