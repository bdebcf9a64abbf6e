"""The residual network against an unrolled one, its initial values and size, and other modules in its place."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from policy.networks import Network, PolicyParams, ResidualNetwork, apply_network, init_network, init_policy
from policy.spec import PolicySpec, SpecError


def fresh(key: int, module: nn.Module, *, in_dim: int) -> Network:
    """A network of numpy arrays, initialized in one compiled program to spare the time of many small ones."""
    init = jax.jit(init_network, static_argnums=1, static_argnames="in_dim")
    return jax.tree.map(np.asarray, init(jax.random.key(key), module, in_dim=in_dim))


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
def network() -> Network:
    """Four blocks of width 48, from 12 inputs to 40 outputs."""
    return fresh(3, ResidualNetwork(16, 48, 40), in_dim=12)


def as_reference_params(network: Network) -> dict[str, Any]:
    """The same numbers under the names that flax gives to Dense and LayerNorm in the order of their calls."""
    layers, stacked = [network.params["input"]], network.params["blocks"]
    for block, index in np.ndindex(stacked["bias"].shape[:2]):
        layers.append(jax.tree.map(lambda leaf: leaf[block, index], stacked))  # noqa: B023
    params: dict[str, Any] = {}
    for index, layer in enumerate(layers):
        params[f"Dense_{index}"] = {"kernel": layer["kernel"], "bias": layer["bias"]}
        params[f"LayerNorm_{index}"] = {"scale": layer["norm_scale"], "bias": layer["norm_bias"]}
    params[f"Dense_{len(layers)}"] = network.params["output"]
    return {"params": params}


def arbitrary_network(module: nn.Module, *, in_dim: int) -> Network:
    """Every leaf drawn at random, where a fresh network's biases and scales are zeros and ones."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_network(jax.random.key(0), module, in_dim=in_dim))
    return jax.tree.map(lambda leaf: 0.5 * rng.standard_normal(leaf.shape, np.float32), shapes)


@pytest.mark.parametrize("depth", [4, 16])
def test_the_scanned_network_is_the_unrolled_one(depth: int) -> None:
    network = arbitrary_network(ResidualNetwork(depth, 16, 3), in_dim=5)
    inputs = np.random.default_rng(1).standard_normal((7, 5)).astype(np.float32)
    with jax.default_matmul_precision("highest"):
        reference = Reference(depth=depth, width=16, out_dim=3)
        expected = jax.jit(reference.apply)(as_reference_params(network), inputs)
        outputs = jax.jit(apply_network)(network, inputs)
    assert outputs.shape == (7, 3)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)


def test_leading_axes_are_rows(network: Network) -> None:
    inputs = np.random.default_rng(1).standard_normal((2, 3, 12)).astype(np.float32)
    outputs = np.asarray(jax.jit(apply_network)(network, inputs))
    assert outputs.shape == (2, 3, 40)
    np.testing.assert_allclose(outputs[1, 2], jax.jit(apply_network)(network, inputs[1, 2]), atol=1e-5)


def test_kernels_are_uniform_within_the_root_of_one_over_their_fan_in(network: Network) -> None:
    for name, fan_in in (("input", 12), ("blocks", 48), ("output", 48)):
        kernel = network.params[name]["kernel"]
        bound = fan_in**-0.5
        largest = np.abs(kernel).max()
        assert 0.98 * bound < largest <= bound
        assert np.var(kernel) == pytest.approx(1 / (3 * fan_in), rel=0.1)
        assert abs(np.mean(kernel)) < 0.1 * bound


def test_published_sizes_start_with_the_published_kernels() -> None:
    params = fresh(0, ResidualNetwork(8, 256, 64), in_dim=31).params
    assert np.abs(params["input"]["kernel"]).max() <= 0.17961  # sqrt(1 / 31)
    stacked = params["blocks"]["kernel"]
    for kernel in (stacked, stacked[1, 2]):  # all blocks together, and one layer
        assert 0.0620 < np.abs(kernel).max() <= 1 / 16
        assert np.var(kernel) == pytest.approx(1 / 768, rel=0.02)


def test_a_fresh_network_has_zero_biases_and_unit_scales(network: Network) -> None:
    for name, shape in (("input", (48,)), ("blocks", (4, 4, 48))):
        layer = network.params[name]
        np.testing.assert_array_equal(layer["bias"], np.zeros(shape))
        np.testing.assert_array_equal(layer["norm_bias"], np.zeros(shape))
        np.testing.assert_array_equal(layer["norm_scale"], np.ones(shape))
    np.testing.assert_array_equal(network.params["output"]["bias"], np.zeros(40))
    assert {leaf.dtype for leaf in jax.tree.leaves(network)} == {jnp.dtype("float32")}


def test_no_two_kernels_of_a_stack_are_alike(network: Network) -> None:
    flat = np.asarray(network.params["blocks"]["kernel"]).reshape(16, 48 * 48)
    assert len({row.tobytes() for row in flat}) == 16
    correlation = np.corrcoef(flat) - np.eye(16)
    assert np.abs(correlation).max() < 0.1  # five standard deviations of 2304 independent values


def test_the_three_networks_and_two_keys_differ(spec: PolicySpec) -> None:
    init = jax.jit(init_policy, static_argnums=1)
    first, second = init(jax.random.key(0), spec), init(jax.random.key(1), spec)
    kernels = [
        network.params["blocks"]["kernel"]
        for network in (first.actor, second.actor, first.state_action_encoder, first.goal_encoder)
    ]
    assert not np.allclose(*kernels[:2])
    pair = kernels[2:]
    assert pair[0].shape == pair[1].shape
    assert not np.allclose(*pair)


def test_a_policy_has_the_sizes_of_its_specification(spec: PolicySpec, params: PolicyParams) -> None:
    assert kernel_shapes(params) == {
        "actor": {"input": (3 + 2, 8), "blocks": (1, 4, 8, 8), "output": (8, 2 * 2)},
        "state_action_encoder": {"input": (3 + 2, 4), "blocks": (2, 4, 4, 4), "output": (4, 5)},
        "goal_encoder": {"input": (2, 4), "blocks": (2, 4, 4, 4), "output": (4, 5)},
    }
    assert len(jax.tree.leaves(params)) == 3 * 10


def test_a_chunk_of_actions_widens_the_actors_output_and_the_critics_input(spec: PolicySpec) -> None:
    sizes = kernel_shapes(shapes_of(dataclasses.replace(spec, action_chunk=3)))
    assert sizes["actor"]["input"] == (3 + 2, 8)
    assert sizes["actor"]["output"] == (8, 2 * 3 * 2)
    assert sizes["state_action_encoder"]["input"] == (3 + 3 * 2, 4)


def test_a_policy_without_a_critic_is_an_actor_alone(spec: PolicySpec) -> None:
    without = dataclasses.replace(spec, critic="none", critic_depth=0, critic_width=0, representation_dim=0)
    params = shapes_of(without)
    assert (params.state_action_encoder, params.goal_encoder) == (None, None)
    assert list(kernel_shapes(params)) == ["actor"]
    assert len(jax.tree.leaves(params)) == 10


def shapes_of(spec: PolicySpec) -> PolicyParams:
    return jax.eval_shape(lambda: init_policy(jax.random.key(0), spec))


def kernel_shapes(params: PolicyParams) -> dict[str, dict[str, tuple[int, ...]]]:
    networks = {name: part for name, part in params._asdict().items() if isinstance(part, Network)}
    return {
        name: {layer: network.params[layer]["kernel"].shape for layer in ("input", "blocks", "output")}
        for name, network in networks.items()
    }


def test_the_program_does_not_grow_with_depth() -> None:
    def size(depth: int) -> tuple[int, int]:
        network = jax.eval_shape(lambda: init_network(jax.random.key(0), ResidualNetwork(depth, 8, 3), in_dim=5))
        program = str(jax.make_jaxpr(apply_network)(network, jnp.zeros((2, 5))))
        return len(program.splitlines()), len(jax.tree.leaves(network))

    assert size(8) == size(64)
    assert size(8)[0] > 20
    assert size(8)[1] == 10


def test_a_depth_between_blocks_is_refused() -> None:
    with pytest.raises(SpecError, match="try 4 or 8"):
        ResidualNetwork(6, 8, 3)


class Plain(nn.Module):
    """What a user may put in place of a residual network."""

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        hidden = nn.tanh(nn.Dense(8)(inputs))
        return nn.Dense(3)(hidden)


def test_any_module_can_stand_in_for_a_residual_network() -> None:
    """The first row trains it; the second one is only scored, and still passes a gradient to its input."""
    network = fresh(0, Plain(), in_dim=2)
    inputs = jnp.array([[1.0, 2.0], [-3.0, 0.5]])

    def forward(network: Network, inputs: jax.Array) -> jax.Array:
        return apply_network(network, inputs, learning_rows=1)

    first, second = (network.params[f"Dense_{index}"] for index in (0, 1))
    hidden = np.tanh(inputs @ first["kernel"] + first["bias"])
    np.testing.assert_allclose(apply_network(network, inputs), hidden @ second["kernel"], atol=1e-5)
    np.testing.assert_allclose(forward(network, inputs), hidden @ second["kernel"], atol=1e-5)
    gradient, by_input = jax.grad(lambda *of: forward(*of).sum(), argnums=(0, 1))(network, inputs)
    np.testing.assert_allclose(gradient.params["Dense_1"]["bias"], np.ones(3))
    np.testing.assert_allclose(gradient.params["Dense_1"]["kernel"], np.tile(hidden[:1].T, 3), atol=1e-6)
    expected = ((1 - hidden**2) * second["kernel"].sum(axis=1)) @ first["kernel"].T
    np.testing.assert_allclose(by_input, expected, atol=1e-5)


def test_the_parameters_are_plain_dictionaries_and_the_module_is_static(network: Network) -> None:
    assert type(network.params) is dict
    assert {name: sorted(layer) for name, layer in network.params.items()} == {
        "blocks": ["bias", "kernel", "norm_bias", "norm_scale"],
        "input": ["bias", "kernel", "norm_bias", "norm_scale"],
        "output": ["bias", "kernel"],
    }
    again = ResidualNetwork(16, 48, 40)
    assert jax.tree.structure(network) == jax.tree.structure(Network(network.params, again))
    other = Network(network.params, ResidualNetwork(20, 48, 40))
    assert jax.tree.structure(network) != jax.tree.structure(other)
