"""The noise of a local policy against JAX's own: equal bits, and normal numbers equal up to rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kilolayer._local import noise
from policy import acting
from serving.engine.engine import noise_columns

SIZE = 5


@jax.jit
def jax_bits(integers: jax.Array) -> jax.Array:
    """What `policy.acting.seeded_noise` begins with, before the bits become normal numbers."""
    key = jax.random.wrap_key_data(integers[1::-1], impl="threefry2x32")
    key = jax.random.fold_in(jax.random.fold_in(key, integers[2]), integers[3])
    return jax.random.bits(key, (SIZE,), jnp.uint32)


jax_normal = jax.jit(jax.vmap(lambda integers: acting.seeded_noise(integers, SIZE)))


@settings(max_examples=30)
@given(seed=st.integers(0, 2**64 - 1))
def test_the_bits_are_those_of_jax_for_every_seed_row_and_candidate(seed: int) -> None:
    integers = jnp.asarray(noise_columns(seed, rows=3, candidates=2).view(np.uint32))
    bits = noise.random_bits(seed, rows=3, candidates=2, size=SIZE)
    assert bits.dtype == np.uint32
    np.testing.assert_array_equal(bits, jax.vmap(jax_bits)(integers))


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 2**63 + 12345, 2**64 - 1])
def test_the_noise_is_that_of_a_server(seed: int) -> None:
    integers = jnp.asarray(noise_columns(seed, rows=40, candidates=3).view(np.uint32))
    found = noise.seeded_noise(seed, rows=40, candidates=3, size=SIZE)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, jax_normal(integers), rtol=2e-6, atol=1e-7)


def test_uniform_and_normal_numbers_are_those_of_jax_at_the_ends_and_between() -> None:
    bits = np.append(np.linspace(0, 2**32 - 1, 20_001).astype(np.uint32), [0, 511, 512, 2**31, 2**32 - 1])
    bits = bits.astype(np.uint32)
    low = np.nextafter(np.float32(-1), np.float32(0))
    fraction = ((bits >> 9) / 2**23).astype(np.float64)
    expected = np.maximum(low, 2 * fraction + low).astype(np.float32)
    found = noise.uniform(bits)
    np.testing.assert_array_equal(found, expected)
    assert found.min() == low
    np.testing.assert_allclose(noise.normal(found), np.sqrt(2) * jax.lax.erf_inv(found), rtol=2e-6, atol=1e-7)


def test_a_value_does_not_depend_on_how_many_there_are() -> None:
    many = noise.seeded_noise(7, rows=4, candidates=3, size=6).reshape(4, 3, 6)
    np.testing.assert_array_equal(noise.seeded_noise(7, rows=2, candidates=1, size=2), many[:2, 0, :2])
