"""The derivative written by hand against JAX's own, of a network written for reading."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from policy.layers import REMATERIALIZATIONS, Architecture, Execution
from policy.networks import Network, ResidualNetwork, apply_network, init_network
from tests import reference

ROWS, IN_DIM, OUT_DIM = 9, 5, 3
RANDOM = np.random.default_rng(0)
INPUTS = jnp.asarray(RANDOM.normal(size=(ROWS, IN_DIM)), jnp.float32)
SLOPE = jnp.asarray(RANDOM.normal(size=(ROWS, OUT_DIM)), jnp.float32)
ARCHITECTURES = [
    Architecture(activation=activation, layer_norm=layer_norm, residual=residual)
    for activation, layer_norm, residual in itertools.product(("swish", "relu"), (True, False), (True, False))
]


def network(architecture: Architecture, *, depth: int = 8, width: int = 16) -> Network:
    """Every leaf drawn at random, around the value a fresh network has."""
    fresh = init_network(jax.random.key(0), ResidualNetwork(depth, width, OUT_DIM, architecture), in_dim=IN_DIM)
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: leaf + 0.3 * random.normal(size=leaf.shape).astype(np.float32), fresh)


CASES = [(architecture, "layers") for architecture in ARCHITECTURES] + [
    (architecture, remat) for architecture in (ARCHITECTURES[0], ARCHITECTURES[-1]) for remat in ("none", "blocks")
]


@pytest.mark.parametrize(("architecture", "remat"), CASES, ids=str)
def test_outputs_and_gradients_of_every_architecture(architecture: Architecture, remat: str) -> None:
    subject = network(architecture)
    execution = Execution(remat=remat)

    def ours(network: Network, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        outputs = apply_network(network, inputs, execution=execution)
        return jnp.sum(outputs * SLOPE), outputs

    def theirs(network: Network, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        outputs = reference.network(network, inputs)
        return jnp.sum(outputs * SLOPE), outputs

    with jax.default_matmul_precision("highest"):
        found = jax.jit(jax.grad(ours, argnums=(0, 1), has_aux=True))(subject, INPUTS)
        expected = jax.jit(jax.grad(theirs, argnums=(0, 1), has_aux=True))(subject, INPUTS)
    assert_leaves_agree(found, expected)


def test_rows_that_do_not_learn_still_get_outputs_and_gradients() -> None:
    """The parameters get a gradient from the first four rows only; every row of the inputs gets its gradient."""
    subject = network(Architecture())

    def ours(network: Network, inputs: jax.Array) -> jax.Array:
        return jnp.sum(apply_network(network, inputs, learning_rows=4) * SLOPE)

    def learning(network: Network) -> jax.Array:
        return jnp.sum((reference.network(network, INPUTS) * SLOPE)[:4])

    def all_rows(inputs: jax.Array) -> jax.Array:
        return jnp.sum(reference.network(subject, inputs) * SLOPE)

    found = jax.jit(jax.grad(ours, argnums=(0, 1)))(subject, INPUTS)
    assert_leaves_agree(found, (jax.jit(jax.grad(learning))(subject), jax.jit(jax.grad(all_rows))(INPUTS)))


@pytest.mark.parametrize("remat", REMATERIALIZATIONS)
def test_bf16_rounds_factors_and_nothing_else(remat: str) -> None:
    """Within the two or three digits of bf16 of the exact gradient, not equal to it, and float32 everywhere outside."""
    subject = network(Architecture())

    def loss(network: Network, precision: str) -> jax.Array:
        return jnp.sum(apply_network(network, INPUTS, execution=Execution(precision=precision, remat=remat)) * SLOPE)

    exact, rounded = (jax.jit(jax.grad(loss), static_argnums=1)(subject, name) for name in ("f32", "bf16"))
    for one, other in zip(jax.tree.leaves(exact), jax.tree.leaves(rounded), strict=True):
        assert other.dtype == jnp.float32
        difference = np.linalg.norm(one - other) / np.linalg.norm(one)
        assert 1e-5 < difference < 0.1 or one.shape == (OUT_DIM,)  # the output's bias has no factor


def test_what_is_kept_is_what_the_name_says() -> None:
    """Arrays of [rows, width] that a block leaves for its backward pass: its input, and 4 products, and 3 inputs."""

    def kept(remat: str) -> float:
        subject = network(Architecture(), depth=40, width=64)
        execution = Execution(remat=remat)
        backward = jax.eval_shape(lambda: jax.vjp(lambda n: apply_network(n, INPUTS, execution=execution), subject)[1])
        shapes = jax.tree.leaves(backward)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(subject))
        return (sum(leaf.size for leaf in shapes) - parameters) / (10 * ROWS * 64)

    assert kept("blocks") == pytest.approx(1, abs=0.3)
    assert kept("layers") == pytest.approx(5, abs=0.5)
    assert kept("none") == pytest.approx(8, abs=0.5)


def assert_leaves_agree(found: object, expected: object) -> None:
    """Within 1e-5 of each leaf's largest entry."""
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * float(np.abs(theirs).max()))
