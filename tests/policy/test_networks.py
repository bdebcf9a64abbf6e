"""The residual network against an unrolled one in flax.linen, and its initial values and size."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from policy.networks import PolicyParams, ResidualNetwork, apply_network, init_network, init_policy
from policy.spec import PolicySpec, SpecError


def fresh(key: int, in_dim: int, *, depth: int, width: int, out_dim: int) -> ResidualNetwork:
    """A network of numpy arrays, initialized in one compiled program to spare the time of many small ones."""
    init = jax.jit(partial(init_network, depth=depth, width=width, out_dim=out_dim), static_argnums=1)
    return jax.tree.map(np.asarray, init(jax.random.key(key), in_dim))


class Reference(nn.Module):
    """The published network, every layer written out (arXiv 2503.14858, section 3), by an independent library."""

    depth: int
    width: int
    out_dim: int

    @nn.compact
    def __call__(self, values: jax.Array) -> jax.Array:
        values = nn.swish(nn.LayerNorm()(nn.Dense(self.width)(values)))
        for _ in range(self.depth // 4):
            residual = values
            for _ in range(4):
                values = nn.swish(nn.LayerNorm()(nn.Dense(self.width)(values)))
            values = values + residual
        return nn.Dense(self.out_dim)(values)


@pytest.fixture(scope="module")
def network() -> ResidualNetwork:
    """Four blocks of width 48, from 12 inputs to 40 outputs."""
    return fresh(3, 12, depth=16, width=48, out_dim=40)


def as_reference_params(network: ResidualNetwork) -> dict[str, Any]:
    """The same numbers under the names that flax gives to Dense and LayerNorm in the order of their calls."""
    blocks = network.blocks.bias.shape[0]
    layers = [network.input]
    layers += [
        jax.tree.map(lambda leaf: leaf[block, i], network.blocks)  # noqa: B023
        for block in range(blocks)
        for i in range(4)
    ]
    params: dict[str, Any] = {}
    for index, layer in enumerate(layers):
        params[f"Dense_{index}"] = {"kernel": layer.kernel, "bias": layer.bias}
        params[f"LayerNorm_{index}"] = {"scale": layer.norm_scale, "bias": layer.norm_bias}
    params[f"Dense_{len(layers)}"] = {"kernel": network.output.kernel, "bias": network.output.bias}
    return {"params": params}


def arbitrary_network(in_dim: int, *, depth: int, width: int, out_dim: int) -> ResidualNetwork:
    """Every leaf drawn at random, where a fresh network's biases and scales are zeros and ones."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_network(jax.random.key(0), in_dim, depth=depth, width=width, out_dim=out_dim))
    return jax.tree.map(lambda leaf: 0.5 * rng.standard_normal(leaf.shape, np.float32), shapes)


@pytest.mark.parametrize("depth", [4, 16])
def test_the_scanned_network_is_the_unrolled_one(depth: int) -> None:
    network = arbitrary_network(5, depth=depth, width=16, out_dim=3)
    inputs = np.random.default_rng(1).standard_normal((7, 5)).astype(np.float32)
    with jax.default_matmul_precision("highest"):
        reference = Reference(depth=depth, width=16, out_dim=3)
        expected = jax.jit(reference.apply)(as_reference_params(network), inputs)
        outputs = jax.jit(apply_network)(network, inputs)
    assert outputs.shape == (7, 3)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)


def test_leading_axes_are_rows(network: ResidualNetwork) -> None:
    inputs = np.random.default_rng(1).standard_normal((2, 3, 12)).astype(np.float32)
    outputs = np.asarray(jax.jit(apply_network)(network, inputs))
    assert outputs.shape == (2, 3, 40)
    np.testing.assert_allclose(outputs[1, 2], jax.jit(apply_network)(network, inputs[1, 2]), atol=1e-5)


def test_kernels_are_uniform_within_the_root_of_one_over_their_fan_in(network: ResidualNetwork) -> None:
    for kernel, fan_in in ((network.input.kernel, 12), (network.blocks.kernel, 48), (network.output.kernel, 48)):
        bound = fan_in**-0.5
        largest = np.abs(kernel).max()
        assert 0.98 * bound < largest <= bound
        assert np.var(kernel) == pytest.approx(1 / (3 * fan_in), rel=0.1)
        assert abs(np.mean(kernel)) < 0.1 * bound


def test_published_sizes_start_with_the_published_kernels() -> None:
    network = init_network(jax.random.key(0), 31, depth=8, width=256, out_dim=64)
    assert np.abs(network.input.kernel).max() <= 0.17961  # sqrt(1 / 31)
    for kernel in (network.blocks.kernel, network.blocks.kernel[1, 2]):  # all blocks together, and one layer
        assert 0.0620 < np.abs(kernel).max() <= 1 / 16
        assert np.var(kernel) == pytest.approx(1 / 768, rel=0.02)


def test_a_fresh_network_has_zero_biases_and_unit_scales(network: ResidualNetwork) -> None:
    for layer, shape in ((network.input, (48,)), (network.blocks, (4, 4, 48))):
        np.testing.assert_array_equal(layer.bias, np.zeros(shape))
        np.testing.assert_array_equal(layer.norm_bias, np.zeros(shape))
        np.testing.assert_array_equal(layer.norm_scale, np.ones(shape))
    np.testing.assert_array_equal(network.output.bias, np.zeros(40))
    assert {leaf.dtype for leaf in jax.tree.leaves(network)} == {jnp.dtype("float32")}


def test_no_two_kernels_of_a_stack_are_alike(network: ResidualNetwork) -> None:
    flat = np.asarray(network.blocks.kernel).reshape(16, 48 * 48)
    assert len({row.tobytes() for row in flat}) == 16
    correlation = np.corrcoef(flat) - np.eye(16)
    assert np.abs(correlation).max() < 0.1  # five standard deviations of 2304 independent values


def test_the_three_networks_and_two_keys_differ(spec: PolicySpec) -> None:
    init = jax.jit(init_policy, static_argnums=1)
    first, second = init(jax.random.key(0), spec), init(jax.random.key(1), spec)
    assert not np.allclose(first.actor.blocks.kernel, second.actor.blocks.kernel)
    pair = first.state_action_encoder.blocks.kernel, first.goal_encoder.blocks.kernel
    assert pair[0].shape == pair[1].shape
    assert not np.allclose(*pair)


def test_a_policy_has_the_sizes_of_its_specification(spec: PolicySpec, params: PolicyParams) -> None:
    assert params.actor.input.kernel.shape == (3 + 2, 8)
    assert params.actor.blocks.kernel.shape == (1, 4, 8, 8)
    assert params.actor.output.kernel.shape == (8, 2 * 2)
    assert params.state_action_encoder.input.kernel.shape == (3 + 2, 4)
    assert params.state_action_encoder.blocks.kernel.shape == (2, 4, 4, 4)
    assert params.goal_encoder.input.kernel.shape == (2, 4)
    assert params.goal_encoder.output.kernel.shape == (4, 5)


def test_the_program_does_not_grow_with_depth() -> None:
    def size(depth: int) -> tuple[int, int]:
        network = jax.eval_shape(lambda: init_network(jax.random.key(0), 5, depth=depth, width=8, out_dim=3))
        program = str(jax.make_jaxpr(apply_network)(network, jnp.zeros((2, 5))))
        return len(program.splitlines()), len(jax.tree.leaves(network))

    assert size(8) == size(64)
    assert size(8)[0] > 20
    assert size(8)[1] == 10


def test_a_depth_between_blocks_is_refused() -> None:
    with pytest.raises(SpecError, match="try 4 or 8"):
        init_network(jax.random.key(0), 5, depth=6, width=8, out_dim=3)
