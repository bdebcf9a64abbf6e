"""The parts of a policy as ONNX operators: networks, signs of quaternions, normalization, squashing, energies.

Each function here has its counterpart in JAX, which it names. Values are [rows, n]. Blocks are stacked in a policy's
parameters; here every layer has operators and arrays of its own.

This module needs the package `onnx` (extra `export`).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from policy.acting import LOG_STD_MAX, LOG_STD_MIN
from policy.energy import LEAST_SQUARE
from policy.exchange.onnx_builder import GraphBuilder
from policy.layers import NORM_EPSILON, Architecture
from policy.networks import Network, ResidualNetwork
from policy.normalization import Normalization
from policy.spec import LAYERS_PER_BLOCK, QUATERNION_SIZE


def network(graph: GraphBuilder, network: Network, inputs: str, *, name: str) -> str:
    """Add a network, `policy.networks.ResidualNetwork`: [rows, in] -> [rows, out].

    Raises:
        ValueError: it is another module.
    """
    module = network.module
    if not isinstance(module, ResidualNetwork):
        raise ValueError(
            f"the ONNX format has operators for ResidualNetwork only, and {name} is {type(module).__name__}; "
            "export another format"
        )
    stacked = {key: np.asarray(leaf) for key, leaf in network.params["blocks"].items()}
    values = _layer(graph, network.params["input"], inputs, name=f"{name}.input", architecture=module.architecture)
    for block in range(module.depth // LAYERS_PER_BLOCK):
        block_inputs = values
        for index in range(LAYERS_PER_BLOCK):
            layer = {key: array[block, index] for key, array in stacked.items()}
            layer_name = f"{name}.blocks.{block}.{index}"
            values = _layer(graph, layer, values, name=layer_name, architecture=module.architecture)
        if module.architecture.residual:
            values = graph.add("Add", [block_inputs, values], f"{name}.blocks.{block}")
    return _dense(graph, network.params["output"], values, name=f"{name}.output")


def prepared_state(
    graph: GraphBuilder, state: str, *, starts: tuple[int, ...], dim: int, normalization: Normalization | None
) -> str:
    """Add the signs of quaternions, then the normalization, as `policy.acting` prepares states."""
    values = canonical_signs(graph, state, starts, dim=dim)
    if normalization is None:
        return values
    mean = graph.array(f"{state}.mean", normalization.mean)
    std = graph.array(f"{state}.std", normalization.std)
    return graph.add("Div", [graph.add("Sub", [values, mean], f"{state}.centered"), std], f"{state}.normalized")


def canonical_signs(graph: GraphBuilder, values: str, starts: tuple[int, ...], *, dim: int) -> str:
    """Add `policy.quaternions.canonical_signs`: [rows, dim] -> [rows, dim]; `values` itself without quaternions."""
    if not starts:
        return values
    ends = [start + QUATERNION_SIZE for start in starts]
    blocks = [(start, end, True) for start, end in zip(starts, ends, strict=True)]
    between = [(end, start, False) for end, start in zip([0, *ends], [*starts, dim], strict=True) if end < start]
    parts = sorted(blocks + between)
    names = graph.split(
        values, [f"{values}.from_{low}" for low, _, _ in parts], sizes=[high - low for low, high, _ in parts]
    )
    signed = [
        _with_canonical_sign(graph, name) if is_quaternion else name
        for name, (_, _, is_quaternion) in zip(names, parts, strict=True)
    ]
    return graph.add("Concat", signed, f"{values}.canonical", axis=1)


def squashed_sample(graph: GraphBuilder, outputs: str, noise: str, *, chunk_dim: int, name: str) -> str:
    """Add the end of `policy.acting.action_distribution`, then `sample_action`: [rows, 2 * chunk_dim] -> an action."""
    mean, raw = graph.split(outputs, ["mean", "raw_log_std"], sizes=[chunk_dim, chunk_dim])
    half_range = graph.array("log_std.half_range", (LOG_STD_MAX - LOG_STD_MIN) / 2)
    least = graph.array("log_std.least", LOG_STD_MIN)
    from_zero = graph.add("Add", [graph.add("Tanh", [raw], "log_std.tanh"), graph.array("one", 1)], "log_std.from_zero")
    log_std = graph.add("Add", [graph.add("Mul", [from_zero, half_range], "log_std.range"), least], "log_std")
    deviation = graph.add("Mul", [graph.add("Exp", [log_std], "std"), noise], "deviation")
    return graph.add("Tanh", [graph.add("Add", [mean, deviation], "raw_action")], name)


def energy(graph: GraphBuilder, pair: str, goal: str, *, energy: str, name: str) -> str:
    """Add the rowwise form of an energy of `policy.energy`: two encodings [rows, n] -> [rows]."""
    return _ENERGIES[energy](graph, pair, goal, name)


def _layer(graph: GraphBuilder, layer: Mapping[str, Any], inputs: str, *, name: str, architecture: Architecture) -> str:
    """Add Dense, LayerNorm and activation, see `policy.layers`."""
    values = _dense(graph, layer, inputs, name=name)
    if architecture.layer_norm:
        scale, shift = (graph.array(f"{name}.{key}", layer[key]) for key in ("norm_scale", "norm_bias"))
        values = graph.add(
            "LayerNormalization", [values, scale, shift], f"{name}.normalized", axis=-1, epsilon=NORM_EPSILON
        )
    if architecture.activation == "relu":
        return graph.add("Relu", [values], f"{name}.activated")
    return graph.add("Mul", [values, graph.add("Sigmoid", [values], f"{name}.gate")], f"{name}.activated")


def _dense(graph: GraphBuilder, dense: Mapping[str, Any], inputs: str, *, name: str) -> str:
    kernel, bias = (graph.array(f"{name}.{key}", dense[key]) for key in ("kernel", "bias"))
    return graph.add("Gemm", [inputs, kernel, bias], f"{name}.dense")


def _with_canonical_sign(graph: GraphBuilder, quaternion: str) -> str:
    """Let the first value that is not 0 be positive, and -0 be 0. Numbers below the normal ones are 0, as in XLA."""
    zero, least = graph.array("zero", 0), graph.array("least_normal", np.finfo(np.float32).tiny)
    *others, first = graph.split(quaternion, [f"{quaternion}.{axis}" for axis in "wxyz"], sizes=[1] * QUATERNION_SIZE)
    for value in reversed(others):
        is_zero = graph.add("Less", [graph.add("Abs", [value], f"{value}.magnitude"), least], f"{value}.is_zero")
        first = graph.add("Where", [is_zero, first, value], f"{value}.or_next")
    negative = graph.add("Less", [first, zero], f"{quaternion}.is_negative")
    opposite = graph.add("Neg", [quaternion], f"{quaternion}.opposite")
    signed = graph.add("Where", [negative, opposite, quaternion], f"{quaternion}.signed")
    zeros = graph.add(
        "Less", [graph.add("Abs", [quaternion], f"{quaternion}.magnitudes"), least], f"{quaternion}.zeros"
    )
    return graph.add("Where", [zeros, zero, signed], f"{quaternion}.canonical")


def _l2(graph: GraphBuilder, pair: str, goal: str, name: str) -> str:
    return graph.add("Neg", [graph.add("Sqrt", [_squared_distance(graph, pair, goal)], f"{name}.distance")], name)


def _l2_squared(graph: GraphBuilder, pair: str, goal: str, name: str) -> str:
    return graph.add("Neg", [_squared_distance(graph, pair, goal)], name)


def _dot(graph: GraphBuilder, pair: str, goal: str, name: str) -> str:
    last_axis = graph.array("last_axis", [1], dtype=np.int64)
    return graph.add("ReduceSum", [graph.add("Mul", [pair, goal], f"{name}.products"), last_axis], name, keepdims=0)


def _cosine(graph: GraphBuilder, pair: str, goal: str, name: str) -> str:
    return _dot(graph, _unit(graph, pair), _unit(graph, goal), name)


def _squared_distance(graph: GraphBuilder, pair: str, goal: str) -> str:
    difference = graph.add("Sub", [pair, goal], "difference")
    square = graph.add("ReduceSumSquare", [difference], "difference.square", axes=[1], keepdims=0)
    return graph.add("Max", [square, graph.array("least_square", LEAST_SQUARE)], "squared_distance")


def _unit(graph: GraphBuilder, encoding: str) -> str:
    square = graph.add("ReduceSumSquare", [encoding], f"{encoding}.square", axes=[1], keepdims=1)
    positive = graph.add("Max", [square, graph.array("least_square", LEAST_SQUARE)], f"{encoding}.positive")
    return graph.add("Div", [encoding, graph.add("Sqrt", [positive], f"{encoding}.length")], f"{encoding}.unit")


_ENERGIES: Mapping[str, Callable[[GraphBuilder, str, str, str], str]] = MappingProxyType(
    {"l2": _l2, "l2_squared": _l2_squared, "dot": _dot, "cosine": _cosine}
)
