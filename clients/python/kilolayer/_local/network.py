"""A policy's networks in plain numpy, from the arrays of model.safetensors.

A layer is Dense, LayerNorm, activation; a block is four layers, with its input added after the last one (arXiv
2503.14858, section 3). The arrays of a network NAME, with all blocks stacked along the first axis:

    NAME.input     kernel [in, width], bias, norm_scale, norm_bias [width]
    NAME.blocks    kernel [blocks, 4, width, width], bias, norm_scale, norm_bias [blocks, 4, width]
    NAME.output    kernel [width, out], bias [out]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_NORM_EPSILON = np.float32(1e-6)


class Layer(NamedTuple):
    """Dense and LayerNorm parameters."""

    kernel: Floats  # [in, width]
    bias: Floats  # [width]
    norm: tuple[Floats, Floats] | None  # scale and bias [width]; None without LayerNorm


class Architecture(NamedTuple):
    """What a layer consists of."""

    activation: str  # swish or relu
    layer_norm: bool
    residual: bool


class Network(NamedTuple):
    """A network with its parameters. It is only read, so any number of threads may run it."""

    architecture: Architecture
    input: Layer
    blocks: list[list[Layer]]
    kernel: Floats  # [width, out], of the output
    bias: Floats  # [out]


def build(
    arrays: Mapping[str, Floats],
    name: str,
    *,
    architecture: Architecture,
    in_dim: int,
    width: int,
    depth: int,
    out: int,
) -> Network:
    """Return the network `name` of `arrays`.

    Raises:
        ValueError: an array is missing or has another shape than the sizes say; the message names it.
    """
    blocks, each = depth // 4, ("bias", "norm_scale", "norm_bias") if architecture.layer_norm else ("bias",)
    shapes: dict[str, tuple[int, ...]] = {
        "input.kernel": (in_dim, width),
        "blocks.kernel": (blocks, 4, width, width),
        "output.kernel": (width, out),
        "output.bias": (out,),
    }
    shapes.update({f"input.{part}": (width,) for part in each})
    shapes.update({f"blocks.{part}": (blocks, 4, width) for part in each})
    for part, shape in shapes.items():
        found = arrays.get(f"{name}.{part}")
        if found is None or found.shape != shape:
            actual = "is missing" if found is None else f"is {list(found.shape)}"
            raise ValueError(f"the array {name}.{part} {actual} where the specification has {list(shape)}")

    def layer(group: str, *index: int) -> Layer:
        kernel, bias = (arrays[f"{name}.{group}.{part}"][index] for part in ("kernel", "bias"))
        if not architecture.layer_norm:
            return Layer(kernel, bias, norm=None)
        scale, shift = (arrays[f"{name}.{group}.{part}"][index] for part in ("norm_scale", "norm_bias"))
        return Layer(kernel, bias, norm=(scale, shift))

    return Network(
        architecture,
        layer("input"),
        [[layer("blocks", block, number) for number in range(4)] for block in range(blocks)],
        arrays[f"{name}.output.kernel"],
        arrays[f"{name}.output.bias"],
    )


def apply(network: Network, inputs: Floats) -> Floats:
    """Run `network` on `inputs: [rows, in]` and return [rows, out]."""
    architecture = network.architecture
    values = _apply_layer(network.input, inputs, activation=architecture.activation)
    for block in network.blocks:
        inside = values
        for layer in block:
            inside = _apply_layer(layer, inside, activation=architecture.activation)
        values = values + inside if architecture.residual else inside
    return values @ network.kernel + network.bias


def _apply_layer(layer: Layer, inputs: Floats, *, activation: str) -> Floats:
    values: Floats = inputs @ layer.kernel
    values += layer.bias
    if layer.norm is not None:
        scale, bias = layer.norm
        width = values.shape[-1]
        values -= np.add.reduce(values, axis=-1, keepdims=True) / np.float32(width)
        variance = np.add.reduce(np.square(values), axis=-1, keepdims=True) / np.float32(width)
        values /= np.sqrt(variance + _NORM_EPSILON)
        values *= scale
        values += bias
    return np.maximum(values, np.float32(0)) if activation == "relu" else values / (np.float32(1) + np.exp(-values))
