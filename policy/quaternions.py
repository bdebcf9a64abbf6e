"""Quaternions in states and goals: give q and -q, which describe the same rotation, the same numbers."""

import dataclasses

import jax
import jax.numpy as jnp

from policy.spec import QUATERNION_SIZE


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Quaternions:
    """The index of the first value (w) of each quaternion (w, x, y, z). A pytree without leaves."""

    state: tuple[int, ...] = ()
    goal: tuple[int, ...] = ()


def canonical_signs(values: jax.Array, starts: tuple[int, ...]) -> jax.Array:
    """Return `values: [..., n]` with the sign of each quaternion chosen: its first value that is not 0 is positive.

    Only signs change (-0 becomes 0), so q and -q become equal bit for bit. Without quaternions, `values` is returned as
    it is.

    Args:
        starts: the index of the first value of each quaternion.
    """
    for start in starts:
        block = slice(start, start + QUATERNION_SIZE)
        values = jnp.asarray(values)
        values = values.at[..., block].set(_with_canonical_sign(values[..., block]))
    return values


def _with_canonical_sign(quaternions: jax.Array) -> jax.Array:
    w, x, y, z = jnp.split(quaternions, QUATERNION_SIZE, axis=-1)
    first = jnp.where(w != 0, w, jnp.where(x != 0, x, jnp.where(y != 0, y, z)))
    return jnp.where(quaternions == 0, 0, jnp.where(first < 0, -quaternions, quaternions))  # -0 becomes 0
