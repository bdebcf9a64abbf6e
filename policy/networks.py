"""The residual network of any depth as a flax module, and the three networks of a policy: one actor and two encoders.

A network is an input layer, a stack of residual blocks and an output Dense. A layer is Dense, LayerNorm, swish. A block
is four layers, with the block's input added after the last activation (arXiv 2503.14858, section 3). The parameters of
all blocks are stacked along a leading axis and scanned over, so neither compile time nor the number of arrays grows
with depth. `policy.layers` computes a layer's forward and backward pass.

The parameters of a network are a plain dictionary:

    input     kernel [in, width], bias, norm_scale, norm_bias [width]
    blocks    kernel [blocks, 4, width, width], bias, norm_scale, norm_bias [blocks, 4, width]
    output    kernel [width, out], bias [out]

To change a network of a policy, write another `flax.linen.Module` and return it from `policy_modules`.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen

from policy.layers import (
    PAPER_ARCHITECTURE,
    PLAIN_EXECUTION,
    Architecture,
    Dense,
    Execution,
    Layer,
    apply_dense,
    apply_layers,
)
from policy.normalization import Normalization
from policy.quaternions import Quaternions
from policy.spec import LAYERS_PER_BLOCK, PolicySpec, check_depth

# Uniform in +-sqrt(1 / fan_in), as the published code draws every kernel (arXiv 2503.14858).
_uniform_in_fan_in = functools.partial(jax.nn.initializers.variance_scaling, 1 / 3, "fan_in", "uniform")
_zeros, _ones = jax.nn.initializers.zeros, jax.nn.initializers.ones


class ResidualNetwork(linen.Module):
    """A residual network: [..., in] -> [..., out_dim].

    Args:
        depth: Dense layers inside the blocks; the input layer and the output Dense are not counted.
        width: values in a layer.
        out_dim: values in an output.
        architecture: what a layer consists of.

    Raises:
        SpecError: `depth` is not a positive multiple of 4.
    """

    depth: int
    width: int
    out_dim: int
    architecture: Architecture = PAPER_ARCHITECTURE

    def __post_init__(self) -> None:
        check_depth(self.depth)
        super().__post_init__()

    @linen.compact
    def __call__(
        self, inputs: jax.Array, *, execution: Execution = PLAIN_EXECUTION, learning_rows: int | None = None
    ) -> jax.Array:
        """Run the network on `inputs: [..., in]`. For the options see `apply_network`."""
        how: Any = {"execution": execution, "learning_rows": learning_rows}
        blocks = self.depth // LAYERS_PER_BLOCK
        values = inputs.reshape(-1, inputs.shape[-1])
        values = InputLayer(self.width, self.architecture, **how, name="input")(values)
        values = ResidualBlocks(blocks, self.architecture, **how, name="blocks")(values)
        values = OutputDense(self.out_dim, **how, name="output")(values)
        return values.reshape(*inputs.shape[:-1], -1)


class InputLayer(linen.Module):
    """The first layer: [rows, in] -> [rows, width]."""

    width: int
    architecture: Architecture
    execution: Execution
    learning_rows: int | None

    @linen.compact
    def __call__(self, values: jax.Array) -> jax.Array:
        """Run the layer; its input is not added to its output."""
        layer = _layer(self, (values.shape[-1], self.width), architecture=self.architecture)
        return apply_layers(
            jax.tree.map(lambda leaf: leaf[None], layer),
            values,
            architecture=self.architecture._replace(residual=False),
            execution=self.execution,
            learning_rows=self.learning_rows,
        )


class ResidualBlocks(linen.Module):
    """All blocks, one after another: [rows, width] -> [rows, width]."""

    blocks: int
    architecture: Architecture
    execution: Execution
    learning_rows: int | None

    @linen.compact
    def __call__(self, values: jax.Array) -> jax.Array:
        """Scan over the blocks."""
        width = values.shape[-1]
        stacked = _layer(self, (self.blocks, LAYERS_PER_BLOCK, width, width), architecture=self.architecture)

        def block(values: jax.Array, layers: Layer) -> tuple[jax.Array, None]:
            values = apply_layers(
                layers,
                values,
                architecture=self.architecture,
                execution=self.execution,
                learning_rows=self.learning_rows,
            )
            return values, None

        return jax.lax.scan(block, values, stacked, unroll=self.execution.unroll)[0]


class OutputDense(linen.Module):
    """The affine map at the end: [rows, width] -> [rows, out_dim]."""

    out_dim: int
    execution: Execution
    learning_rows: int | None

    @linen.compact
    def __call__(self, values: jax.Array) -> jax.Array:
        """Multiply and add the bias."""
        kernel = self.param("kernel", _uniform_in_fan_in(), (values.shape[-1], self.out_dim))
        dense = Dense(kernel, bias=self.param("bias", _zeros, (self.out_dim,)))
        return apply_dense(dense, values, execution=self.execution, learning_rows=self.learning_rows)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Network:
    """A network as a pytree: its parameters are the leaves, its module belongs to the structure."""

    params: Any  # nested dictionaries of arrays, as `module.init` names them
    module: linen.Module = dataclasses.field(metadata={"static": True})


class PolicyParams(NamedTuple):
    """Everything that an action depends on. The encoders are the critic, which only `acting.score` needs."""

    actor: Network  # (state, goal) -> mean and log-std of the actions before squashing: [2 * chunk_dim]
    state_action_encoder: Network | None = None  # phi(state, action) -> [representation_dim]; None without a critic
    goal_encoder: Network | None = None  # psi(goal) -> [representation_dim]; None without a critic
    normalization: Normalization | None = None  # of states; None for states as they are
    quaternions: Quaternions = Quaternions()


class PolicyModules(NamedTuple):
    """The modules of a policy's networks, without parameters."""

    actor: linen.Module
    state_action_encoder: linen.Module | None
    goal_encoder: linen.Module | None


def policy_modules(spec: PolicySpec) -> PolicyModules:
    """Return the modules of a policy. Training, the bundle and serving build their networks from this function."""
    architecture = Architecture(activation=spec.activation, layer_norm=spec.layer_norm, residual=spec.residual)
    actor = ResidualNetwork(spec.actor_depth, spec.actor_width, 2 * spec.chunk_dim, architecture)
    if not spec.has_critic:
        return PolicyModules(actor, state_action_encoder=None, goal_encoder=None)
    encoder = ResidualNetwork(spec.critic_depth, spec.critic_width, spec.representation_dim, architecture)
    return PolicyModules(actor, state_action_encoder=encoder, goal_encoder=encoder)


def init_policy(key: jax.Array, spec: PolicySpec) -> PolicyParams:
    """Return fresh float32 parameters for `spec`: kernels uniform in +-sqrt(1 / fan_in), biases 0, norm scales 1."""
    modules = policy_modules(spec)
    in_dims = (spec.state_dim + spec.goal_dim, spec.state_dim + spec.chunk_dim, spec.goal_dim)
    keys = jax.random.split(key, len(modules))
    actor, *encoders = (
        module and init_network(key, module, in_dim=in_dim)
        for key, module, in_dim in zip(keys, modules, in_dims, strict=True)
    )
    assert actor is not None
    return PolicyParams(
        actor,
        *encoders,
        normalization=Normalization.from_spec(spec),
        quaternions=Quaternions(state=spec.state_quaternions, goal=spec.goal_quaternions),
    )


def init_network(key: jax.Array, module: linen.Module, *, in_dim: int) -> Network:
    """Return `module`, which takes inputs [rows, in_dim], with fresh parameters."""
    inputs = jax.ShapeDtypeStruct((1, in_dim), jnp.float32)
    return Network(module.lazy_init(key, inputs)["params"], module)


def apply_network(
    network: Network,
    inputs: jax.Array,
    *,
    execution: Execution = PLAIN_EXECUTION,
    learning_rows: int | None = None,
) -> jax.Array:
    """Run `network` on `inputs: [..., in]` and return [..., out].

    Args:
        execution: how to compute a `ResidualNetwork`; changes only rounding, memory and speed. Other modules decide
            for themselves.
        learning_rows: the parameters get a gradient from the first `learning_rows` rows of `inputs: [rows, in]` only;
            None for all rows. Every row of `inputs` gets its own gradient.
    """

    def run(params: Any, inputs: jax.Array, **options: Any) -> Any:
        return network.module.apply({"params": params}, inputs, **options)

    if isinstance(network.module, ResidualNetwork):
        return run(network.params, inputs, execution=execution, learning_rows=learning_rows)
    if learning_rows is None:
        return run(network.params, inputs)
    scored = run(jax.lax.stop_gradient(network.params), inputs[learning_rows:])
    return jnp.concatenate([run(network.params, inputs[:learning_rows]), scored])


def _layer(module: linen.Module, kernel_shape: tuple[int, ...], *, architecture: Architecture) -> Layer:
    """Declare the parameters of a layer, or of stacked layers: every axis of the kernel before the last two."""
    stack = tuple(range(len(kernel_shape) - 2))
    row = (*kernel_shape[:-2], kernel_shape[-1])
    return Layer(
        kernel=module.param("kernel", _uniform_in_fan_in(batch_axis=stack), kernel_shape),
        bias=module.param("bias", _zeros, row),
        norm_scale=module.param("norm_scale", _ones, row) if architecture.layer_norm else None,
        norm_bias=module.param("norm_bias", _zeros, row) if architecture.layer_norm else None,
    )


def parameter_counts(spec: PolicySpec) -> dict[str, int]:
    """Return how many parameters each network of a policy has, by its name in `PolicyParams`; nothing is computed."""
    shapes = jax.eval_shape(lambda: init_policy(jax.random.key(0), spec))
    networks = {name: part for name, part in shapes._asdict().items() if isinstance(part, Network)}
    return {name: sum(leaf.size for leaf in jax.tree.leaves(network)) for name, network in networks.items()}
