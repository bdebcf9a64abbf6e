"""A ring buffer with the latest steps of every environment, on the device.

Arrays are time-major, [slots, environments, ...], so inserting an unroll is one contiguous write. The number of slots
is the capacity rounded up to a multiple of the unroll, so an insert never wraps around; steps beyond the capacity count
as deleted. Episode ends need no storage of their own, because each environment's episode number never decreases.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Steps(NamedTuple):
    """Consecutive steps of all environments. The state is the one before the action."""

    state: jax.Array  # [time, environments, state_dim]
    action: jax.Array  # [time, environments, action_dim]
    episode: jax.Array  # [time, environments] int32, non-decreasing along time


class ReplayBuffer(NamedTuple):
    """The ring. The `held` slots before the cursor hold steps."""

    steps: Steps  # time axis of length slots
    cursor: jax.Array  # int32, where the next insert goes
    held: jax.Array  # int32, at most the capacity
    capacity: jax.Array  # int32


class StepIndex(NamedTuple):
    """Positions of steps in the buffer, both arrays [...] int32."""

    age: jax.Array  # time steps after the oldest step held
    environment: jax.Array


class Pairs(NamedTuple):
    """Steps, and later steps of the same episodes."""

    step: StepIndex
    future: StepIndex


class Batch(NamedTuple):
    """The rows of one gradient step. `future_state[i]` was reached from `state[i]` after `action[i]`.

    An actor learns its first `commanded` rows for `commanded_goal` instead of the future states' goals.
    """

    state: jax.Array  # [batch, state_dim]
    action: jax.Array  # [batch, action_dim]
    future_state: jax.Array  # [batch, state_dim]
    commanded_goal: jax.Array | None = None  # [commanded, goal_dim]; None for no such rows


def empty(capacity: int, *, unroll_length: int, environments: int, state_dim: int, action_dim: int) -> ReplayBuffer:
    """Return an empty buffer for the latest `capacity` steps, to be filled `unroll_length` steps at a time."""
    slots = -(-capacity // unroll_length) * unroll_length
    steps = Steps(
        state=jnp.zeros((slots, environments, state_dim)),
        action=jnp.zeros((slots, environments, action_dim)),
        episode=jnp.zeros((slots, environments), jnp.int32),
    )
    return ReplayBuffer(steps, cursor=jnp.int32(0), held=jnp.int32(0), capacity=jnp.int32(capacity))


def insert(replay: ReplayBuffer, steps: Steps, *, usable: jax.Array | bool = True) -> ReplayBuffer:
    """Replace the oldest steps with `steps`.

    Args:
        usable: bool scalar; if it is false, the buffer, which must be empty, stays empty.

    Raises:
        ValueError: the number of slots is not a multiple of the number of steps.
    """
    slots, added = replay.steps.episode.shape[0], steps.episode.shape[0]
    if slots % added:
        raise ValueError(f"the replay buffer's {slots} slots must be a multiple of the {added} steps to insert")

    def write(ring: jax.Array, rows: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(ring, rows, replay.cursor, axis=0)

    held = jnp.where(usable, added, 0)
    return ReplayBuffer(
        steps=jax.tree.map(write, replay.steps, steps),
        cursor=(replay.cursor + held) % slots,
        held=jnp.minimum(replay.held + held, replay.capacity),
        capacity=replay.capacity,
    )


def rows(replay: ReplayBuffer, index: StepIndex) -> tuple[jax.Array, jax.Array]:
    """Return the indices of `index` into the time and the environment axis of `replay.steps`."""
    slots = replay.steps.episode.shape[0]
    oldest = replay.cursor - replay.held
    return (oldest + index.age) % slots, index.environment


def steps_left(replay: ReplayBuffer, index: StepIndex) -> jax.Array:
    """Return how many later steps of the same episode are held, [...] int32."""
    return _end_of_episode(replay, index, outside=jnp.broadcast_to(replay.held, index.age.shape)) - index.age


def steps_back(replay: ReplayBuffer, index: StepIndex) -> jax.Array:
    """Return how many earlier steps of the same episode are held, [...] int32."""
    return index.age - _end_of_episode(replay, index, outside=jnp.full(index.age.shape, -1))


def _end_of_episode(replay: ReplayBuffer, index: StepIndex, *, outside: jax.Array) -> jax.Array:
    """Return the age of the episode's step nearest to the age `outside`, by binary search of episode numbers.

    Args:
        outside: [...] int32, an age before or after all steps held.
    """
    own = replay.steps.episode[rows(replay, index)]
    rounds = replay.steps.episode.shape[0].bit_length()

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """`inside` is always within the episode, `outside` never."""
        inside, outside = bounds
        middle = (inside + outside) // 2
        within = replay.steps.episode[rows(replay, StepIndex(middle, index.environment))] == own
        within &= middle != outside  # at the age -1 the ring may hold a step that counts as deleted
        return jnp.where(within, middle, inside), jnp.where(within, outside, middle)

    return jax.lax.fori_loop(0, rounds, halve, (index.age, outside))[0]


def gather(replay: ReplayBuffer, pairs: Pairs) -> Batch:
    """Return the rows of `pairs` as a batch."""
    step, future = rows(replay, pairs.step), rows(replay, pairs.future)
    steps = replay.steps
    return Batch(state=steps.state[step], action=steps.action[step], future_state=steps.state[future])
