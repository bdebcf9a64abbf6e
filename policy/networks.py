"""The residual network of any depth, and the three networks of a policy: one actor and two encoders.

A network is an input layer, a stack of residual blocks and an output Dense. A layer is Dense, LayerNorm, swish. A block
is four layers, with the block's input added after the last activation (arXiv 2503.14858, section 3). The parameters of
all blocks are stacked along a leading axis and scanned over, so neither compile time nor the number of arrays grows
with depth. `policy.layers` computes a layer's forward and backward pass.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

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
from policy.spec import LAYERS_PER_BLOCK, PolicySpec, check_depth

# Uniform in +-sqrt(1 / fan_in), as the published code draws every kernel (arXiv 2503.14858).
_uniform_in_fan_in = functools.partial(jax.nn.initializers.variance_scaling, 1 / 3, "fan_in", "uniform")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ResidualNetwork:
    """The parameters of one network of any depth, and its architecture."""

    input: Layer
    blocks: Layer  # every leaf has the leading axes [blocks, 4]
    output: Dense
    architecture: Architecture = dataclasses.field(default=PAPER_ARCHITECTURE, metadata={"static": True})


class PolicyParams(NamedTuple):
    """The parameters of one policy. The encoders are the critic, which only `acting.score` needs."""

    actor: ResidualNetwork  # (state, goal) -> mean and log-std of the action before squashing: [2 * action_dim]
    state_action_encoder: ResidualNetwork  # phi(state, action) -> [representation_dim]
    goal_encoder: ResidualNetwork  # psi(goal) -> [representation_dim]


def init_policy(key: jax.Array, spec: PolicySpec) -> PolicyParams:
    """Return fresh float32 parameters for `spec`: kernels uniform in +-sqrt(1 / fan_in), biases 0, norm scales 1."""
    actor_key, state_action_key, goal_key = jax.random.split(key, 3)
    architecture = Architecture(activation=spec.activation, layer_norm=spec.layer_norm, residual=spec.residual)

    def critic(key: jax.Array, in_dim: int) -> ResidualNetwork:
        sizes = {"depth": spec.critic_depth, "width": spec.critic_width, "out_dim": spec.representation_dim}
        return init_network(key, in_dim, **sizes, architecture=architecture)

    return PolicyParams(
        actor=init_network(
            actor_key,
            spec.state_dim + spec.goal_dim,
            depth=spec.actor_depth,
            width=spec.actor_width,
            out_dim=2 * spec.action_dim,
            architecture=architecture,
        ),
        state_action_encoder=critic(state_action_key, spec.state_dim + spec.action_dim),
        goal_encoder=critic(goal_key, spec.goal_dim),
    )


def init_network(
    key: jax.Array,
    in_dim: int,
    *,
    depth: int,
    width: int,
    out_dim: int,
    architecture: Architecture = PAPER_ARCHITECTURE,
) -> ResidualNetwork:
    """Return a fresh network with `depth` Dense layers inside its blocks; input layer and output Dense are not counted.

    Raises:
        SpecError: `depth` is not a positive multiple of 4.
    """
    blocks = check_depth(depth) // LAYERS_PER_BLOCK
    input_key, blocks_key, output_key = jax.random.split(key, 3)
    return ResidualNetwork(
        input=_init_layer(input_key, (in_dim, width), architecture=architecture),
        blocks=_init_layer(blocks_key, (blocks, LAYERS_PER_BLOCK, width, width), architecture=architecture),
        output=Dense(_uniform_in_fan_in()(output_key, (width, out_dim), jnp.float32), jnp.zeros(out_dim)),
        architecture=architecture,
    )


def apply_network(
    network: ResidualNetwork,
    inputs: jax.Array,
    *,
    execution: Execution = PLAIN_EXECUTION,
    learning_rows: int | None = None,
) -> jax.Array:
    """Run `network` on `inputs: [..., in]` and return [..., out]. The stacked parameters determine the depth.

    Args:
        execution: how to compute it; changes only rounding, memory and speed.
        learning_rows: the parameters get a gradient from the first `learning_rows` rows of `inputs: [rows, in]` only;
            None for all rows. Every row of `inputs` gets its own gradient.
    """
    options: Any = {"execution": execution, "learning_rows": learning_rows}

    def block(values: jax.Array, layers: Layer) -> tuple[jax.Array, None]:
        return apply_layers(layers, values, architecture=network.architecture, **options), None

    rows = inputs.reshape(-1, inputs.shape[-1])
    first = jax.tree.map(lambda leaf: leaf[None], network.input)
    plain = network.architecture._replace(residual=False)
    values = apply_layers(first, rows, architecture=plain, **options)
    values, _ = jax.lax.scan(block, values, network.blocks, unroll=execution.unroll)
    return apply_dense(network.output, values, **options).reshape(*inputs.shape[:-1], -1)


def encode_state_action(
    encoder: ResidualNetwork,
    state: jax.Array,
    action: jax.Array,
    *,
    execution: Execution = PLAIN_EXECUTION,
    learning_rows: int | None = None,
) -> jax.Array:
    """Return phi(state, action), [..., representation_dim]. For the options see `apply_network`."""
    inputs = jnp.concatenate([state, action], axis=-1)
    return apply_network(encoder, inputs, execution=execution, learning_rows=learning_rows)


def encode_goal(encoder: ResidualNetwork, goal: jax.Array, *, execution: Execution = PLAIN_EXECUTION) -> jax.Array:
    """Return psi(goal), [..., representation_dim]."""
    return apply_network(encoder, goal, execution=execution)


def _init_layer(key: jax.Array, kernel_shape: tuple[int, ...], *, architecture: Architecture) -> Layer:
    stack = tuple(range(len(kernel_shape) - 2))
    row = (*kernel_shape[:-2], kernel_shape[-1])
    kernel = _uniform_in_fan_in(batch_axis=stack)(key, kernel_shape, jnp.float32)
    norm_scale, norm_bias = (jnp.ones(row), jnp.zeros(row)) if architecture.layer_norm else (None, None)
    return Layer(kernel, bias=jnp.zeros(row), norm_scale=norm_scale, norm_bias=norm_bias)
