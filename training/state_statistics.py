"""Statistics of the states that training has seen: over the whole run, and frozen when learning begins.

Only steps that entered the replay buffer count. Means are kept instead of sums: a large float32 sum no longer changes
when a small number is added.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from policy.normalization import Normalization

_ROUNDING = 1e-6  # spread of a constant value that is computed anew for every state, relative to its size


class RowStatistics(NamedTuple):
    """Statistics of rows of states, [state_dim] each."""

    rows: jax.Array  # float32 scalar, how many there were
    mean: jax.Array
    variance: jax.Array
    low: jax.Array
    high: jax.Array


class Statistics(NamedTuple):
    """The statistics of a run."""

    seen: RowStatistics  # of all steps so far
    prefill: RowStatistics  # of the steps before learning began; without rows until then


def nothing(state_dim: int) -> Statistics:
    """Return the statistics before the first step."""
    return Statistics(_no_rows(state_dim), _no_rows(state_dim))


def add(statistics: Statistics, states: jax.Array, *, valid: jax.Array, ready: jax.Array) -> Statistics:
    """Count an unroll, and freeze what `normalization` reads at the first one that is `ready`.

    Args:
        states: [time, environments, state_dim].
        valid: [time, environments] bool, which of them count.
        ready: bool scalar, whether the replay buffer holds enough steps to learn from.
    """
    seen = _merge(statistics.seen, _of_rows(states, valid))
    freeze = ready & (statistics.prefill.rows == 0)
    return Statistics(seen, jax.tree.map(lambda new, old: jnp.where(freeze, new, old), seen, statistics.prefill))


def normalization(frozen: RowStatistics) -> Normalization:
    """Return mean and standard deviation to normalize with: 1 for a value that never varied, and before any row."""
    std = jnp.sqrt(frozen.variance)
    varied = std > _ROUNDING * jnp.maximum(jnp.abs(frozen.low), jnp.abs(frozen.high))
    return Normalization(mean=frozen.mean, std=jnp.where((frozen.rows > 0) & varied, std, 1.0))


def spec_fields(statistics: Statistics, applied: Normalization | None) -> dict[str, Any]:
    """Return the statistics as fields of a policy's specification.

    Args:
        applied: what the policy normalizes states with; None if it does not. The frozen statistics are then stored
            without being applied.
    """
    seen, prefill = statistics
    fields: dict[str, Any] = {}
    if applied is None and prefill.rows > 0:
        applied = normalization(prefill)
    if applied is not None:
        fields |= {"normalization_mean": applied.mean, "normalization_std": applied.std}
    if seen.rows > 0:
        std = jnp.sqrt(seen.variance)
        fields |= {"seen_mean": seen.mean, "seen_std": std, "seen_low": seen.low, "seen_high": seen.high}
    return {name: tuple(np.asarray(values).tolist()) for name, values in fields.items()}


def _no_rows(state_dim: int) -> RowStatistics:
    """Return the statistics of no rows, in arrays of their own: a compiled program takes over each only once."""
    ends = (jnp.full(state_dim, end) for end in (jnp.inf, -jnp.inf))
    return RowStatistics(jnp.float32(0), jnp.zeros(state_dim), jnp.zeros(state_dim), *ends)


def _of_rows(states: jax.Array, valid: jax.Array) -> RowStatistics:
    """Return the statistics of `states`. Sums are relative to the first one, because a far mean would cost digits."""
    counts = valid[..., None]
    rows = jnp.sum(valid, dtype=jnp.float32)
    divisor = jnp.maximum(rows, 1)
    offset = states - states[0, 0]
    mean = jnp.sum(jnp.where(counts, offset, 0), axis=(0, 1)) / divisor
    variance = jnp.sum(jnp.where(counts, (offset - mean) ** 2, 0), axis=(0, 1)) / divisor
    low = jnp.min(jnp.where(counts, states, jnp.inf), axis=(0, 1))
    high = jnp.max(jnp.where(counts, states, -jnp.inf), axis=(0, 1))
    return RowStatistics(rows, mean + states[0, 0], variance, low, high)


def _merge(one: RowStatistics, other: RowStatistics) -> RowStatistics:
    """Return the statistics of the rows of both (Chan, Golub and LeVeque 1979, equation 2.1, divided by the rows)."""
    rows = one.rows + other.rows
    weight = jnp.where(rows > 0, other.rows / jnp.maximum(rows, 1), 0.0)
    step = other.mean - one.mean
    return RowStatistics(
        rows,
        mean=one.mean + weight * step,
        variance=one.variance + weight * (other.variance - one.variance) + weight * (1 - weight) * step**2,
        low=jnp.minimum(one.low, other.low),
        high=jnp.maximum(one.high, other.high),
    )
