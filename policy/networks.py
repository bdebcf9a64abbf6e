"""The residual network of every depth, and the three networks of a policy: one actor, two encoders.

A network is an input layer, a stack of residual blocks and an output Dense. A layer is Dense, LayerNorm, swish; a
block is four layers with its input added after the last activation (arXiv 2503.14858, section 3). The blocks'
parameters are stacked along a leading axis and scanned over, so neither compile time nor the number of arrays grows
with depth.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from policy.spec import LAYERS_PER_BLOCK, PolicySpec, check_depth

_NORM_EPSILON = 1e-6  # as flax.linen.LayerNorm, which the published networks use
_lecun_uniform = jax.nn.initializers.lecun_uniform


class Layer(NamedTuple):
    """Dense, LayerNorm, swish. Inside a stack every leaf has the leading axes [blocks, 4]."""

    kernel: jax.Array  # [in, width]
    bias: jax.Array  # [width]
    norm_scale: jax.Array  # [width]
    norm_bias: jax.Array  # [width]


class Dense(NamedTuple):
    """An affine map, without activation."""

    kernel: jax.Array  # [in, out]
    bias: jax.Array  # [out]


class ResidualNetwork(NamedTuple):
    """The parameters of one network of any depth."""

    input: Layer
    blocks: Layer
    output: Dense


class PolicyParams(NamedTuple):
    """The parameters of one policy; the encoders are the critic, needed for `acting.score` only."""

    actor: ResidualNetwork  # (state, goal) -> mean and log-std of the action before squashing: [2 * action_dim]
    state_action_encoder: ResidualNetwork  # phi(state, action) -> [representation_dim]
    goal_encoder: ResidualNetwork  # psi(goal) -> [representation_dim]


def init_policy(key: jax.Array, spec: PolicySpec) -> PolicyParams:
    """Fresh parameters for `spec`: LeCun uniform kernels, zero biases, unit norm scales, all float32."""
    actor_key, state_action_key, goal_key = jax.random.split(key, 3)
    critic = {"depth": spec.critic_depth, "width": spec.critic_width, "out_dim": spec.representation_dim}
    return PolicyParams(
        actor=init_network(
            actor_key,
            spec.state_dim + spec.goal_dim,
            depth=spec.actor_depth,
            width=spec.actor_width,
            out_dim=2 * spec.action_dim,
        ),
        state_action_encoder=init_network(state_action_key, spec.state_dim + spec.action_dim, **critic),
        goal_encoder=init_network(goal_key, spec.goal_dim, **critic),
    )


def init_network(key: jax.Array, in_dim: int, *, depth: int, width: int, out_dim: int) -> ResidualNetwork:
    """A fresh network with `depth` Dense layers inside its blocks, besides the input layer and the output Dense.

    Raises:
        SpecError: `depth` is not a positive multiple of 4.
    """
    blocks = check_depth(depth) // LAYERS_PER_BLOCK
    input_key, blocks_key, output_key = jax.random.split(key, 3)
    return ResidualNetwork(
        input=_init_layer(input_key, (in_dim, width)),
        blocks=_init_layer(blocks_key, (blocks, LAYERS_PER_BLOCK, width, width)),
        output=Dense(_lecun_uniform()(output_key, (width, out_dim), jnp.float32), jnp.zeros(out_dim)),
    )


def apply_network(network: ResidualNetwork, inputs: jax.Array) -> jax.Array:
    """Run `network` on `inputs: [..., in]` and return [..., out]. The depth is that of the stacked parameters."""
    outputs, _ = jax.lax.scan(_apply_block, _apply_layer(network.input, inputs), network.blocks)
    return outputs @ network.output.kernel + network.output.bias


def _init_layer(key: jax.Array, kernel_shape: tuple[int, ...]) -> Layer:
    stack = tuple(range(len(kernel_shape) - 2))
    row = (*kernel_shape[:-2], kernel_shape[-1])
    kernel = _lecun_uniform(batch_axis=stack)(key, kernel_shape, jnp.float32)
    return Layer(kernel, bias=jnp.zeros(row), norm_scale=jnp.ones(row), norm_bias=jnp.zeros(row))


def _apply_block(inputs: jax.Array, block: Layer) -> tuple[jax.Array, None]:
    outputs = inputs
    for index in range(LAYERS_PER_BLOCK):
        outputs = _apply_layer(Layer(*(leaf[index] for leaf in block)), outputs)
    return inputs + outputs, None


def _apply_layer(layer: Layer, inputs: jax.Array) -> jax.Array:
    return jax.nn.swish(_normalise(layer, inputs @ layer.kernel + layer.bias))


def _normalise(layer: Layer, values: jax.Array) -> jax.Array:
    """LayerNorm over the last axis."""
    centred = values - jnp.mean(values, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + _NORM_EPSILON) * layer.norm_scale + layer.norm_bias
