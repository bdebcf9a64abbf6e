"""Fresh parameters of policies for tests: compiled, because one operation after the other they take seconds."""

import functools

import jax

from policy.networks import PolicyParams, init_policy
from policy.spec import PolicySpec

_init = jax.jit(init_policy, static_argnums=1)


@functools.cache
def fresh_params(seed: int, spec: PolicySpec) -> PolicyParams:
    """Return what `init_policy` gives for the key of `seed`."""
    return _init(jax.random.key(seed), spec)
