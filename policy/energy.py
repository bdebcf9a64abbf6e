"""Energies: how close the encodings phi(state, action) and psi(goal) are, in one table.

Each comes in two forms: for all pairs of rows, which the critic's loss compares, and row by row, which scores actions.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp

LEAST_SQUARE = 1e-12  # keeps the square root's gradient finite where two encodings are equal, or one is zero


class Energy(NamedTuple):
    """One energy in its two forms; higher for closer encodings."""

    pairwise: Callable[[jax.Array, jax.Array], jax.Array]  # [B, R], [B, R] -> [B, B], row i with every row j
    rowwise: Callable[[jax.Array, jax.Array], jax.Array]  # [..., R], [..., R] -> [...]


def _squared_distances(pairs: jax.Array, goals: jax.Array) -> jax.Array:
    """Return |a - b|^2 as |a|^2 + |b|^2 - 2 a.b, never below 0: one matrix product, no [B, B, R] difference.

    The three terms nearly cancel if the encodings are far from the origin compared with their distance. Therefore the
    mean goal becomes the origin first. No distance depends on the origin, so its gradient is 0 and not computed.
    """
    origin = jax.lax.stop_gradient(jnp.mean(goals, axis=0))
    pairs, goals = pairs - origin, goals - origin
    square = jnp.sum(jnp.square(pairs), axis=-1)[:, None] + jnp.sum(jnp.square(goals), axis=-1)[None, :]
    return jnp.maximum(square - 2 * _dots(pairs, goals), LEAST_SQUARE)


def _squared_distance(pairs: jax.Array, goals: jax.Array) -> jax.Array:
    return jnp.maximum(jnp.sum(jnp.square(pairs - goals), axis=-1), LEAST_SQUARE)


def _dots(pairs: jax.Array, goals: jax.Array) -> jax.Array:
    """Multiply in full float32 even if the device would round the factors, because the squares above nearly cancel."""
    return jnp.matmul(pairs, goals.T, precision=jax.lax.Precision.HIGHEST)


def _dot(pairs: jax.Array, goals: jax.Array) -> jax.Array:
    return jnp.sum(pairs * goals, axis=-1)


def _unit(encodings: jax.Array) -> jax.Array:
    """Scale every row to length 1."""
    square = jnp.sum(jnp.square(encodings), axis=-1, keepdims=True)
    return encodings * jax.lax.rsqrt(jnp.maximum(square, LEAST_SQUARE))


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
