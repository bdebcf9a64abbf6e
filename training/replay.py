"""A ring of the latest steps of every environment, on the device.

Steps lie time first, [slots, environments, ...], so that an insert of a whole unroll is one contiguous write. There are
as many slots as the capacity, rounded up to a multiple of the unroll, so that an insert never wraps; steps past the
capacity count as gone. Episode ends need no storage of their own: each environment's episode number never decreases
along time.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Steps(NamedTuple):
    """Consecutive steps of all environments. The state is the one before the action."""

    state: jax.Array  # [time, environments, state_dim]
    action: jax.Array  # [time, environments, action_dim]
    episode: jax.Array  # [time, environments] int32, non-decreasing along time


class Replay(NamedTuple):
    """The ring. Of its slots, the `held` before the cursor hold steps."""

    steps: Steps  # time axis of length slots
    cursor: jax.Array  # int32, where the next insert goes
    held: jax.Array  # int32, at most the capacity
    capacity: jax.Array  # int32


class Moments(NamedTuple):
    """Places in the ring: an age counted from the oldest row held, and an environment. Both [...] int32."""

    age: jax.Array
    environment: jax.Array


def empty(capacity: int, *, unroll: int, environments: int, state_dim: int, action_dim: int) -> Replay:
    """A ring for the latest `capacity` steps that holds none yet, to be filled `unroll` steps at a time."""
    slots = -(-capacity // unroll) * unroll
    steps = Steps(
        state=jnp.zeros((slots, environments, state_dim)),
        action=jnp.zeros((slots, environments, action_dim)),
        episode=jnp.zeros((slots, environments), jnp.int32),
    )
    return Replay(steps, cursor=jnp.int32(0), held=jnp.int32(0), capacity=jnp.int32(capacity))


def insert(replay: Replay, steps: Steps) -> Replay:
    """Put `steps` in the place of the oldest; their number must divide that of the slots."""
    slots, added = replay.steps.episode.shape[0], steps.episode.shape[0]
    if slots % added:
        raise ValueError(f"the replay's {slots} slots must be a multiple of the steps added at once, {added}")

    def write(ring: jax.Array, rows: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(ring, rows, replay.cursor, axis=0)

    return Replay(
        steps=jax.tree.map(write, replay.steps, steps),
        cursor=(replay.cursor + added) % slots,
        held=jnp.minimum(replay.held + added, replay.capacity),
        capacity=replay.capacity,
    )


def rows(replay: Replay, moments: Moments) -> tuple[jax.Array, jax.Array]:
    """Where `moments` lie in the arrays of `replay.steps`: indices for the time and the environment axis."""
    slots = replay.steps.episode.shape[0]
    oldest = replay.cursor - replay.held
    return (oldest + moments.age) % slots, moments.environment


def steps_left(replay: Replay, moments: Moments) -> jax.Array:
    """How many later steps of the same episode the ring holds, [...] int32: a binary search of the episode numbers."""
    own = replay.steps.episode[rows(replay, moments)]
    rounds = replay.steps.episode.shape[0].bit_length()

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """`low` is always within the episode, `high` always past it."""
        low, high = bounds
        middle = (low + high) // 2
        within = replay.steps.episode[rows(replay, Moments(middle, moments.environment))] == own
        return jnp.where(within, middle, low), jnp.where(within, high, middle)

    past_the_end = jnp.broadcast_to(replay.held, moments.age.shape)
    last, _ = jax.lax.fori_loop(0, rounds, halve, (moments.age, past_the_end))
    return last - moments.age
