"""How near two encodings are: the energies between phi(state, action) and psi(goal), in one table.

Each is given for all pairs of rows, as the critic's loss compares them, and row by row, as the actor is judged.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp

_LEAST_SQUARE = 1e-12  # keeps the gradient of a square root finite where two encodings meet, or one is zero


class Energy(NamedTuple):
    """One energy, higher for nearer encodings, in its two forms."""

    pairwise: Callable[[jax.Array, jax.Array], jax.Array]  # [B, R], [B, R] -> [B, B], row i against every row j
    rowwise: Callable[[jax.Array, jax.Array], jax.Array]  # [..., R], [..., R] -> [...]


def _squared_distances(pairs: jax.Array, goals: jax.Array) -> jax.Array:
    """|a - b|^2 as |a|^2 + |b|^2 - 2 a.b, one matrix product instead of a [B, B, R] difference, and not below zero."""
    square = jnp.sum(jnp.square(pairs), axis=-1)[:, None] + jnp.sum(jnp.square(goals), axis=-1)[None, :]
    return jnp.maximum(square - 2 * _dots(pairs, goals), _LEAST_SQUARE)


def _squared_distance(pairs: jax.Array, goals: jax.Array) -> jax.Array:
    return jnp.maximum(jnp.sum(jnp.square(pairs - goals), axis=-1), _LEAST_SQUARE)


def _dots(pairs: jax.Array, goals: jax.Array) -> jax.Array:
    """In full float32, also where a device would round the factors: the squares above nearly cancel."""
    return jnp.matmul(pairs, goals.T, precision=jax.lax.Precision.HIGHEST)


def _dot(pairs: jax.Array, goals: jax.Array) -> jax.Array:
    return jnp.sum(pairs * goals, axis=-1)


def _unit(encodings: jax.Array) -> jax.Array:
    """Every row scaled to length 1."""
    square = jnp.sum(jnp.square(encodings), axis=-1, keepdims=True)
    return encodings * jax.lax.rsqrt(jnp.maximum(square, _LEAST_SQUARE))


ENERGIES: Mapping[str, Energy] = MappingProxyType(
    {
        "l2": Energy(
            pairwise=lambda pairs, goals: -jnp.sqrt(_squared_distances(pairs, goals)),
            rowwise=lambda pairs, goals: -jnp.sqrt(_squared_distance(pairs, goals)),
        ),
        "l2_squared": Energy(
            pairwise=lambda pairs, goals: -_squared_distances(pairs, goals),
            rowwise=lambda pairs, goals: -_squared_distance(pairs, goals),
        ),
        "dot": Energy(pairwise=_dots, rowwise=_dot),
        "cosine": Energy(
            pairwise=lambda pairs, goals: _dots(_unit(pairs), _unit(goals)),
            rowwise=lambda pairs, goals: _dot(_unit(pairs), _unit(goals)),
        ),
    }
)
