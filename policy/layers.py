"""Run a stack of layers, with a hand-written backward pass, so that what is stored for it is a named choice.

A layer is Dense, LayerNorm, activation:

    z = x W,  u = norm(z + b) * scale + shift,  y = act(u)

A run of layers (one residual block, or the input layer) may add its input to its last output. The backward pass needs
the run's input and every z; the rest follows by cheap arithmetic. `Execution.remat` says what is stored:

    layers  the run's input and every z: 1.25 arrays per layer of a block
    blocks  the run's input only; the run is computed a second time
    none    every layer's input as well

Writing the backward pass by hand has two more advantages. Some rows of a batch are only scored by a network and must
not train it (the actor's own actions in the critic): they take part in every product except the parameters' gradient.
And in bf16, the factors of every product are rounded in both passes, while sums and statistics stay in float32.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

NORM_EPSILON = 1e-6  # of flax.linen.LayerNorm, which the published networks use

PRECISIONS = {"f32": jnp.float32, "bf16": jnp.bfloat16}
REMATERIALIZATIONS = ("none", "layers", "blocks")


class Layer(NamedTuple):
    """Dense and LayerNorm parameters. A run of layers has one more leading axis. norm_* are None without LayerNorm."""

    kernel: jax.Array  # [in, width]
    bias: jax.Array  # [width]
    norm_scale: jax.Array | None  # [width]
    norm_bias: jax.Array | None  # [width]


class Dense(NamedTuple):
    """An affine map without activation."""

    kernel: jax.Array  # [in, out]
    bias: jax.Array  # [out]


class Architecture(NamedTuple):
    """What a layer consists of: the paper's choice, or one of its ablations."""

    activation: str = "swish"  # or "relu"
    layer_norm: bool = True
    residual: bool = True


class Execution(NamedTuple):
    """How a network is computed. This changes only rounding, memory and speed."""

    precision: str = "f32"  # one of PRECISIONS: of the factors of matrix products, and of stored products
    remat: str = "layers"  # one of REMATERIALIZATIONS: what is stored for the backward pass
    unroll: int = 1  # blocks per iteration of the loop over blocks


PAPER_ARCHITECTURE = Architecture()
PLAIN_EXECUTION = Execution()


class _Residuals(NamedTuple):
    """What the backward pass of one layer needs."""

    inputs: jax.Array  # [rows, in]
    product: jax.Array  # [rows, width], inputs @ kernel


def apply_layers(
    layers: Layer, inputs: jax.Array, *, architecture: Architecture, execution: Execution, learning_rows: int | None
) -> jax.Array:
    """Run `inputs: [rows, in]` through layers whose leaves have the leading axis [layers]; return [rows, width].

    With `architecture.residual`, the inputs are added to the output.
    """
    return _apply_layers(architecture, execution, learning_rows, layers, inputs)


def apply_dense(dense: Dense, inputs: jax.Array, *, execution: Execution, learning_rows: int | None) -> jax.Array:
    """Return `inputs: [rows, in]` times the kernel plus the bias, [rows, out]."""
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
    execution: Execution, learning_rows: int | None, residuals: tuple[Dense, jax.Array], cotangent: jax.Array
) -> tuple[Dense, jax.Array]:
    dense, inputs = residuals
    learning = cotangent[:learning_rows]
    gradient = Dense(kernel=_multiply(inputs[:learning_rows].T, learning, execution), bias=jnp.sum(learning, axis=0))
    return gradient, _multiply(cotangent, dense.kernel.T, execution)


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
    outputs, residuals = _run(architecture, execution, layers, inputs)
    match execution.remat:
        case "none":
            return outputs, (layers, inputs, residuals)
        case "layers":
            return outputs, (layers, inputs, tuple(layer.product for layer in residuals))
        case _:
            return outputs, (layers, inputs, None)


def _backward(
    architecture: Architecture, execution: Execution, learning_rows: int | None, stored: Any, cotangent: jax.Array
) -> tuple[Layer, jax.Array]:
    layers, inputs, residuals = stored
    match execution.remat:
        case "none":
            pass
        case "layers":
            residuals = _with_inputs(architecture, layers, inputs, residuals)
        case _:
            _, residuals = _run(architecture, execution, layers, inputs)
    outer = cotangent
    gradients: list[Layer] = []
    for index in reversed(range(len(residuals))):
        gradient, cotangent = _layer_backward(
            architecture,
            execution,
            _at(layers, index),
            residuals=residuals[index],
            cotangent=cotangent,
            learning_rows=learning_rows,
        )
        gradients.append(gradient)
    gradient = jax.tree.map(lambda *leaves: jnp.stack(leaves), *reversed(gradients))
    return gradient, cotangent + outer if architecture.residual else cotangent


_apply_layers.defvjp(_forward, _backward)


def _run(
    architecture: Architecture, execution: Execution, layers: Layer, inputs: jax.Array
) -> tuple[jax.Array, tuple[_Residuals, ...]]:
    values, residuals = inputs, []
    for index in range(layers.bias.shape[0]):
        layer = _at(layers, index)
        product = _multiply(values, layer.kernel, execution, rounded=True)
        residuals.append(_Residuals(values, product))
        values = _activate(architecture, _affine(layer, product)[0])
    return inputs + values if architecture.residual else values, tuple(residuals)


def _with_inputs(
    architecture: Architecture, layers: Layer, inputs: jax.Array, products: tuple[jax.Array, ...]
) -> tuple[_Residuals, ...]:
    """Compute every layer's input from the stored products."""
    residuals = [_Residuals(inputs, products[0])]
    for index, product in enumerate(products[1:]):
        values = _activate(architecture, _affine(_at(layers, index), products[index])[0])
        residuals.append(_Residuals(values, product))
    return tuple(residuals)


def _affine(layer: Layer, product: jax.Array) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """Return the activation's input [rows, width]; with LayerNorm, also the normalized values and 1 / deviation."""
    values = product.astype(jnp.float32) + layer.bias
    if layer.norm_scale is None or layer.norm_bias is None:
        return values, None, None
    centered = values - jnp.mean(values, axis=-1, keepdims=True)
    inverse_std = jax.lax.rsqrt(jnp.mean(jnp.square(centered), axis=-1, keepdims=True) + NORM_EPSILON)
    normalized = centered * inverse_std
    return normalized * layer.norm_scale + layer.norm_bias, normalized, inverse_std


def _activate(architecture: Architecture, values: jax.Array) -> jax.Array:
    return jax.nn.relu(values) if architecture.activation == "relu" else values * jax.nn.sigmoid(values)


def _layer_backward(
    architecture: Architecture,
    execution: Execution,
    layer: Layer,
    *,
    residuals: _Residuals,
    cotangent: jax.Array,
    learning_rows: int | None,
) -> tuple[Layer, jax.Array]:
    """Return the gradient of a layer's parameters and the cotangent of its input, from the cotangent of its output."""
    values, normalized, inverse_std = _affine(layer, residuals.product)
    if architecture.activation == "relu":
        cotangent = jnp.where(values > 0, cotangent, 0)
    else:
        gate = jax.nn.sigmoid(values)
        cotangent = cotangent * gate * (1 + values * (1 - gate))
    norm_scale = norm_bias = None
    if layer.norm_scale is not None and normalized is not None and inverse_std is not None:
        norm_scale = jnp.sum((cotangent * normalized)[:learning_rows], axis=0)
        norm_bias = jnp.sum(cotangent[:learning_rows], axis=0)
        cotangent = cotangent * layer.norm_scale
        along = jnp.mean(cotangent * normalized, axis=-1, keepdims=True)
        cotangent = inverse_std * (cotangent - jnp.mean(cotangent, axis=-1, keepdims=True) - normalized * along)
    learning = cotangent[:learning_rows]
    gradient = Layer(
        kernel=_multiply(residuals.inputs[:learning_rows].T, learning, execution),
        bias=jnp.sum(learning, axis=0),
        norm_scale=norm_scale,
        norm_bias=norm_bias,
    )
    return gradient, _multiply(cotangent, layer.kernel.T, execution)


def _multiply(left: jax.Array, right: jax.Array, execution: Execution, *, rounded: bool = False) -> jax.Array:
    """Multiply matrices rounded to the chosen precision; the result is float32, or if `rounded`, of that precision."""
    kind = PRECISIONS[execution.precision]
    return jnp.matmul(left.astype(kind), right.astype(kind), preferred_element_type=kind if rounded else jnp.float32)


def _at(layers: Layer, index: int) -> Layer:
    return jax.tree.map(lambda leaf: leaf[index], layers)
