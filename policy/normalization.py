"""Normalization of states: subtract a mean, divide by a standard deviation. Goals are never normalized."""

from typing import NamedTuple, Self

import jax
import jax.numpy as jnp

from policy.spec import PolicySpec


class Normalization(NamedTuple):
    """The statistics that states are normalized with. They are constants: no gradient reaches them."""

    mean: jax.Array  # [state_dim]
    std: jax.Array  # [state_dim], above 0

    @classmethod
    def from_spec(cls, spec: PolicySpec) -> Self | None:
        """Return the statistics of `spec` in float32; None if its policy does not normalize states."""
        if not spec.normalize_observations:
            return None
        return cls(*(jnp.array(each, jnp.float32) for each in (spec.normalization_mean, spec.normalization_std)))


def normalize(normalization: Normalization | None, state: jax.Array) -> jax.Array:
    """Return (state - mean) / std, [..., state_dim]; `state` itself without a normalization."""
    if normalization is None:
        return state
    mean, std = jax.lax.stop_gradient(normalization)
    return (state - mean) / std
