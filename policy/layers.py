"""A run of layers with its derivative written out, so that what is kept for the backward pass is a choice by name.

A layer is Dense, LayerNorm, activation:

    z = x W,  u = norm(z + b) * scale + shift,  y = act(u)

A run of them (one residual block, or the input layer) may add its input to its last output. The backward pass needs
the input of the run and every z, from which the rest follows by cheap arithmetic: that is what "layers" keeps, 1.25
arrays per layer of a block. "blocks" keeps the input alone and computes the run a second time; "none" also keeps every
layer's input.

The derivative is by hand for two more reasons. Some rows of a batch may pass through a network only to be judged by it
(the actor's own actions in the critic): they take part in every product but the parameters' gradient. And in bf16, the
factors of every product are rounded, forwards and backwards alike, while sums and statistics stay in float32.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_NORM_EPSILON = 1e-6  # as flax.linen.LayerNorm, which the published networks use

PRECISIONS = {"f32": jnp.float32, "bf16": jnp.bfloat16}
REMATERIALISATIONS = ("none", "layers", "blocks")


class Layer(NamedTuple):
    """Dense, LayerNorm, activation. A run of layers has one more axis in front. Without LayerNorm, its two are None."""

    kernel: jax.Array  # [in, width]
    bias: jax.Array  # [width]
    norm_scale: jax.Array | None  # [width]
    norm_bias: jax.Array | None  # [width]


class Dense(NamedTuple):
    """An affine map, without activation."""

    kernel: jax.Array  # [in, out]
    bias: jax.Array  # [out]


class Architecture(NamedTuple):
    """What a layer is made of: the paper's choice, or one of its ablations."""

    activation: str = "swish"  # or "relu"
    layer_norm: bool = True
    residual: bool = True


class Execution(NamedTuple):
    """How a network is computed, which changes nothing but rounding, memory and speed."""

    precision: str = "f32"  # one of PRECISIONS: the factors of matrix products, and what is kept of them
    remat: str = "layers"  # one of REMATERIALISATIONS: what is kept for the backward pass
    unroll: int = 1  # blocks per turn of the loop over blocks


PAPER_ARCHITECTURE = Architecture()
PLAIN_EXECUTION = Execution()


class _Kept(NamedTuple):
    """What the backward pass of one layer starts from."""

    inputs: jax.Array  # [rows, in]
    product: jax.Array  # [rows, width], inputs times kernel


def apply_layers(
    layers: Layer, inputs: jax.Array, *, architecture: Architecture, execution: Execution, learning_rows: int | None
) -> jax.Array:
    """Pass `inputs: [rows, in]` through a run of layers, whose leaves have the leading axis [layers]: [rows, width].

    With `architecture.residual`, the inputs are added to the output.
    """
    return _apply_layers(architecture, execution, learning_rows, layers, inputs)


def apply_dense(dense: Dense, inputs: jax.Array, *, execution: Execution, learning_rows: int | None) -> jax.Array:
    """`inputs: [rows, in]` times the kernel, plus the bias: [rows, out]."""
    return _apply_dense(execution, learning_rows, dense, inputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _apply_dense(execution: Execution, learning_rows: int | None, dense: Dense, inputs: jax.Array) -> jax.Array:
    del learning_rows
    return _multiply(inputs, dense.kernel, execution) + dense.bias


def _dense_forward(
    execution: Execution, learning_rows: int | None, dense: Dense, inputs: jax.Array
) -> tuple[jax.Array, tuple[Dense, jax.Array]]:
    return _apply_dense(execution, learning_rows, dense, inputs), (dense, inputs)


def _dense_backward(
    execution: Execution, learning_rows: int | None, kept: tuple[Dense, jax.Array], slope: jax.Array
) -> tuple[Dense, jax.Array]:
    dense, inputs = kept
    learning = slope[:learning_rows]
    gradient = Dense(kernel=_multiply(inputs[:learning_rows].T, learning, execution), bias=jnp.sum(learning, axis=0))
    return gradient, _multiply(slope, dense.kernel.T, execution)


_apply_dense.defvjp(_dense_forward, _dense_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _apply_layers(
    architecture: Architecture, execution: Execution, learning_rows: int | None, layers: Layer, inputs: jax.Array
) -> jax.Array:
    del learning_rows
    return _run(architecture, execution, layers, inputs)[0]


def _forward(
    architecture: Architecture, execution: Execution, learning_rows: int | None, layers: Layer, inputs: jax.Array
) -> tuple[jax.Array, Any]:
    del learning_rows
    outputs, kept = _run(architecture, execution, layers, inputs)
    match execution.remat:
        case "none":
            return outputs, (layers, inputs, kept)
        case "layers":
            return outputs, (layers, inputs, tuple(layer.product for layer in kept))
        case _:
            return outputs, (layers, inputs, None)


def _backward(
    architecture: Architecture, execution: Execution, learning_rows: int | None, residuals: Any, slope: jax.Array
) -> tuple[Layer, jax.Array]:
    layers, inputs, kept = residuals
    match execution.remat:
        case "none":
            pass
        case "layers":
            kept = _with_inputs(architecture, layers, inputs, kept)
        case _:
            _, kept = _run(architecture, execution, layers, inputs)
    outer = slope
    gradients: list[Layer] = []
    for index in reversed(range(len(kept))):
        gradient, slope = _layer_backward(
            architecture, execution, _at(layers, index), kept=kept[index], slope=slope, learning_rows=learning_rows
        )
        gradients.append(gradient)
    gradient = jax.tree.map(lambda *leaves: jnp.stack(leaves), *reversed(gradients))
    return gradient, slope + outer if architecture.residual else slope


_apply_layers.defvjp(_forward, _backward)


def _run(
    architecture: Architecture, execution: Execution, layers: Layer, inputs: jax.Array
) -> tuple[jax.Array, tuple[_Kept, ...]]:
    values, kept = inputs, []
    for index in range(layers.bias.shape[0]):
        layer = _at(layers, index)
        product = _multiply(values, layer.kernel, execution, rounded=True)
        kept.append(_Kept(values, product))
        values = _activate(architecture, _affine(layer, product)[0])
    return inputs + values if architecture.residual else values, tuple(kept)


def _with_inputs(
    architecture: Architecture, layers: Layer, inputs: jax.Array, products: tuple[jax.Array, ...]
) -> tuple[_Kept, ...]:
    """Every layer's input, from the products kept."""
    kept = [_Kept(inputs, products[0])]
    for index, product in enumerate(products[1:]):
        values = _activate(architecture, _affine(_at(layers, index), products[index])[0])
        kept.append(_Kept(values, product))
    return tuple(kept)


def _affine(layer: Layer, product: jax.Array) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """What is activated, [rows, width]; and, with LayerNorm, the normalised values and 1 / their former deviation."""
    values = product.astype(jnp.float32) + layer.bias
    if layer.norm_scale is None or layer.norm_bias is None:
        return values, None, None
    centred = values - jnp.mean(values, axis=-1, keepdims=True)
    rate = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + _NORM_EPSILON)
    normalised = centred * rate
    return normalised * layer.norm_scale + layer.norm_bias, normalised, rate


def _activate(architecture: Architecture, values: jax.Array) -> jax.Array:
    return jax.nn.relu(values) if architecture.activation == "relu" else values * jax.nn.sigmoid(values)


def _layer_backward(
    architecture: Architecture,
    execution: Execution,
    layer: Layer,
    *,
    kept: _Kept,
    slope: jax.Array,
    learning_rows: int | None,
) -> tuple[Layer, jax.Array]:
    """From the slope of the loss along a layer's output, the slopes along its parameters and along its input."""
    values, normalised, rate = _affine(layer, kept.product)
    if architecture.activation == "relu":
        slope = jnp.where(values > 0, slope, 0)
    else:
        gate = jax.nn.sigmoid(values)
        slope = slope * gate * (1 + values * (1 - gate))
    norm_scale = norm_bias = None
    if layer.norm_scale is not None and normalised is not None and rate is not None:
        norm_scale = jnp.sum((slope * normalised)[:learning_rows], axis=0)
        norm_bias = jnp.sum(slope[:learning_rows], axis=0)
        slope = slope * layer.norm_scale
        along = jnp.mean(slope * normalised, axis=-1, keepdims=True)
        slope = rate * (slope - jnp.mean(slope, axis=-1, keepdims=True) - normalised * along)
    learning = slope[:learning_rows]
    gradient = Layer(
        kernel=_multiply(kept.inputs[:learning_rows].T, learning, execution),
        bias=jnp.sum(learning, axis=0),
        norm_scale=norm_scale,
        norm_bias=norm_bias,
    )
    return gradient, _multiply(slope, layer.kernel.T, execution)


def _multiply(left: jax.Array, right: jax.Array, execution: Execution, *, rounded: bool = False) -> jax.Array:
    """A matrix product of factors in the chosen precision, summed in float32 and, if `rounded`, kept in theirs."""
    kind = PRECISIONS[execution.precision]
    return jnp.matmul(left.astype(kind), right.astype(kind), preferred_element_type=kind if rounded else jnp.float32)


def _at(layers: Layer, index: int) -> Layer:
    return jax.tree.map(lambda leaf: leaf[index], layers)
