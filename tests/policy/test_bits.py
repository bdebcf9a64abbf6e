"""Policies in a program that computes with 64 bits."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from policy import bundle
from policy.bits import in_32_bits
from policy.networks import PolicyParams
from policy.spec import PolicySpec
from tests.policy.bundles import publish


def test_the_program_around_goes_on_with_its_own_bits() -> None:
    with jax.enable_x64(True):
        assert in_32_bits(jnp.arange)(3).dtype == jnp.int32
        assert jnp.arange(3).dtype == jnp.int64


def test_a_policy_is_published_and_read(
    tmp_path: Path, published: Path, spec: PolicySpec, params: PolicyParams
) -> None:
    expected = bundle.read(published / "200").params
    with jax.enable_x64(True):
        read = bundle.read(publish(tmp_path, 1, spec=spec, params=params)).params
        assert bundle.read(published / "200").version == 200
    for ours, theirs in zip(jax.tree.leaves(read), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == np.float32
