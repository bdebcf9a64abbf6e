"""Hindsight goals: pair each step with a later state of its own episode, which becomes its goal.

The later state lies k >= 1 steps ahead with probability proportional to discount^k, among the steps that the replay
buffer still holds (arXiv 2206.07568, section 4). k is sampled by inverting the cumulative distribution in closed form,
so no matrix of probabilities is built.

Rows of a batch are independent, or come in groups from one episode. Rows of one episode are more alike than rows of
two, so they are harder negative examples for each other (arXiv 2508.13113). Each row alone is uniform over the buffer
in both cases, because a group's episode is drawn with a probability proportional to its length.
"""

import jax
import jax.numpy as jnp

from training.data.replay_buffer import Pairs, ReplayBuffer, StepIndex, steps_back, steps_left

SELF_WEIGHT = 1e-5  # weight of k = 0, next to discount^k for the others: an episode's last step has only itself


def sample_pairs(
    key: jax.Array, replay: ReplayBuffer, shape: tuple[int, ...], *, discount: float, rows_per_episode: int = 1
) -> Pairs:
    """Sample steps uniformly from the buffer, and a later step for each; all indices have the shape `shape`.

    Args:
        rows_per_episode: number of consecutive rows that are steps of one episode, drawn independently and with
            replacement; the last axis of `shape` is a multiple of it.
    """
    age_key, environment_key, offset_key, mates_key = jax.random.split(key, 4)
    groups = (*shape[:-1], shape[-1] // rows_per_episode)
    environments = replay.steps.episode.shape[1]
    step = StepIndex(
        age=jax.random.randint(age_key, groups, 0, replay.held),
        environment=jax.random.randint(environment_key, groups, 0, environments),
    )
    left = steps_left(replay, step)
    if rows_per_episode > 1:
        step, left = _with_mates(mates_key, replay, step, left=left, rows_per_episode=rows_per_episode)
    offset = future_offset(jax.random.uniform(offset_key, shape), left, discount=discount)
    return Pairs(step, future=StepIndex(step.age + offset, step.environment))


def _with_mates(
    key: jax.Array, replay: ReplayBuffer, step: StepIndex, *, left: jax.Array, rows_per_episode: int
) -> tuple[StepIndex, jax.Array]:
    """Follow each of the steps `step`, [..., groups], by `rows_per_episode` - 1 others of its episode.

    Returns:
        The steps and how many later steps of the episode are held after each, both [..., groups * rows_per_episode].
    """
    first, last = step.age - steps_back(replay, step), step.age + left
    count = (last - first + 1)[..., None]
    uniform = jax.random.uniform(key, (*step.age.shape, rows_per_episode - 1))
    position = jnp.minimum((uniform * count).astype(jnp.int32), count - 1)  # a product may round up to the count
    age = jnp.concatenate([step.age[..., None], first[..., None] + position], axis=-1)
    environment = jnp.broadcast_to(step.environment[..., None], age.shape)

    def rows(groups: jax.Array) -> jax.Array:
        return groups.reshape(*groups.shape[:-2], -1)

    return StepIndex(rows(age), rows(environment)), rows(last[..., None] - age)


def future_offset(uniform: jax.Array, left: jax.Array, *, discount: float) -> jax.Array:
    """Return the offset k for `uniform` in [0, 1) if `left` later steps are held, all [...].

    P(k) is proportional to discount^k for 1 <= k <= left and to SELF_WEIGHT for k = 0.
    """
    total = discount * (1 - discount**left) / (1 - discount)
    mass = uniform * (total + SELF_WEIGHT) - SELF_WEIGHT
    inverse = jnp.ceil(jnp.log1p(-mass * (1 - discount) / discount) / jnp.log(discount))
    offset = jnp.clip(inverse, 1, left).astype(jnp.int32)
    return jnp.where((mass < 0) | (left == 0), 0, offset)
