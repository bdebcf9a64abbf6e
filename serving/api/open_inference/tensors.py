"""Tensors of requests to rows for the engine, without a loop over values or rows.

Shapes and sizes are compared as Python integers, which cannot overflow, with the policy's sizes and the row limit
before an array is made. Memory is never allocated for a size that only the shape claims.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from policy.spec import PolicySpec
from serving.api import codec
from serving.api.open_inference import open_inference_pb2 as pb
from serving.batching.queue import PRIORITIES
from serving.errors import InvalidRequestError, echo

DATATYPE = "FP32"
INPUTS = ("state", "goal")
OUTPUT = "action"
# Parameters that change where the values of a tensor are, or which values: ignoring one would give wrong actions.
_UNSUPPORTED = frozenset({"classification", "shared_memory_byte_size", "shared_memory_offset", "shared_memory_region"})
_FP32_BYTES = 4
_Input: TypeAlias = pb.ModelInferRequest.InferInputTensor


class Scheduling(NamedTuple):
    """The priority and the timeout of a request."""

    priority: int  # as the batcher counts: 0, the default, to 3, the most urgent
    timeout_us: int  # 0: none


def decode_scheduling(request: pb.ModelInferRequest) -> Scheduling:
    """Read the parameters `priority` and `timeout`, which Triton defines; parameters of other names are ignored.

    Raises:
        InvalidRequestError: a value is not an integer, or out of range.
    """
    if not request.parameters:
        return Scheduling(0, 0)
    level = _integer(request, "priority")
    if not 0 <= level <= PRIORITIES:
        raise InvalidRequestError(
            f"priority must be from 1, the most urgent, to {PRIORITIES}, or 0 for the default, got {level}"
        )
    timeout_us = _integer(request, "timeout")
    if timeout_us < 0:
        raise InvalidRequestError(f"timeout must be a number of microseconds, or 0 for none, got {timeout_us}")
    return Scheduling(PRIORITIES - level if level else 0, timeout_us)


def decode_robot_id(request: pb.ModelInferRequest) -> str:
    """Return the parameter `robot_id`, the name of the robot; empty if it is not there.

    Raises:
        InvalidRequestError: it is not a string, or too long.
    """
    if "robot_id" not in request.parameters:
        return ""
    parameter = request.parameters["robot_id"]
    kind = parameter.WhichOneof("parameter_choice")
    if kind != "string_param":
        raise InvalidRequestError(f"robot_id must be a string_param, got {kind or 'none'}")
    codec.check_robot_id(parameter.string_param)
    return parameter.string_param


def decode_rows(request: pb.ModelInferRequest, spec: PolicySpec, *, max_rows: int) -> np.ndarray:
    """Return the rows [rows, state_dim + goal_dim] of a request.

    Raises:
        InvalidRequestError: a tensor is missing or unknown; its datatype or shape does not fit the policy or its bytes;
            there are more than `max_rows` rows; or a value is NaN or infinite.
    """
    _check_outputs(request)
    dims = {"state": spec.state_dim, "goal": spec.goal_dim}
    blocks: dict[str, np.ndarray] = {}
    for tensor, raw in zip(request.inputs, _raw_contents(request), strict=True):
        name = tensor.name
        if name not in dims:
            raise InvalidRequestError(f"there is no input {echo(name)}; the inputs are: {', '.join(INPUTS)}")
        if name in blocks:
            raise InvalidRequestError(f"the input {name} is there twice; send it once")
        blocks[name] = _block(tensor, raw, dim=dims[name], max_rows=max_rows)
    for name in INPUTS:
        if name not in blocks:
            raise InvalidRequestError(f"the input {name} is missing; the inputs are: {', '.join(INPUTS)}")
    state, goal = blocks["state"], blocks["goal"]
    if len(goal) not in (1, len(state)):
        raise InvalidRequestError(f"goal must have 1 row, or {len(state)} as state has, got {len(goal)}")
    return codec.join(state=state, goal=goal)


def _integer(request: pb.ModelInferRequest, name: str) -> int:
    """Return the integer parameter `name`; 0 if there is none."""
    if name not in request.parameters:
        return 0
    parameter = request.parameters[name]
    kind = parameter.WhichOneof("parameter_choice")
    if kind == "int64_param":
        return parameter.int64_param
    if kind == "uint64_param":
        return parameter.uint64_param
    raise InvalidRequestError(f"{name} must be an int64_param or a uint64_param, got {kind or 'none'}")


def _check_outputs(request: pb.ModelInferRequest) -> None:
    for output in request.outputs:
        if output.name != OUTPUT:
            raise InvalidRequestError(f"there is no output {echo(output.name)}; the output is: {OUTPUT}")
        check_parameters(output)


def check_parameters(tensor: _Input | pb.ModelInferRequest.InferRequestedOutputTensor) -> None:
    """Refuse a tensor whose values are not in the request, or are to be changed.

    Raises:
        InvalidRequestError: it has such a parameter.
    """
    if not tensor.parameters:
        return
    unsupported = sorted(_UNSUPPORTED.intersection(tensor.parameters))
    if unsupported:
        raise InvalidRequestError(
            f"the parameter {unsupported[0]} of {echo(tensor.name)} is not supported; send the values in the request"
        )


def _raw_contents(request: pb.ModelInferRequest) -> Sequence[bytes | None]:
    """Return the raw values of each input; None for every one if the request uses typed contents."""
    raw = request.raw_input_contents
    if not raw:
        return [None] * len(request.inputs)
    if len(raw) != len(request.inputs):
        raise InvalidRequestError(
            f"raw_input_contents must have one entry for each of {len(request.inputs)} inputs, got {len(raw)}"
        )
    return raw


def _block(tensor: _Input, raw: bytes | None, *, dim: int, max_rows: int) -> np.ndarray:
    """Return the values [rows, dim] of an input, from `raw` or, if that is None, from its typed contents."""
    check_parameters(tensor)
    name, shape = tensor.name, tuple(tensor.shape)
    if tensor.datatype != DATATYPE:
        raise InvalidRequestError(f"{name} must have datatype {DATATYPE}, got {echo(tensor.datatype)}")
    if len(shape) != 2:
        raise InvalidRequestError(f"{name} must have shape [rows, {dim}], got {len(shape)} dimensions")
    if shape[0] < 1 or shape[1] != dim:
        raise InvalidRequestError(f"{name} must have shape [rows, {dim}], got {list(shape)}")
    if shape[0] > max_rows:
        raise InvalidRequestError(f"a request may have at most {max_rows} rows, got {shape[0]}; split it into several")
    size = shape[0] * dim
    values = _typed_values(tensor, size) if raw is None else _raw_values(tensor, raw, size=size)
    return values.reshape(shape)


def _raw_values(tensor: _Input, raw: bytes, *, size: int) -> np.ndarray:
    if tensor.HasField("contents"):
        raise InvalidRequestError(f"{tensor.name} has contents and raw_input_contents; send only one of them")
    if len(raw) != size * _FP32_BYTES:
        raise InvalidRequestError(
            f"{tensor.name} of shape {list(tensor.shape)} must hold {size * _FP32_BYTES} raw bytes, got {len(raw)}"
        )
    return codec.from_bytes(tensor.name, raw)


def _typed_values(tensor: _Input, size: int) -> np.ndarray:
    fields = [field.name for field, _ in tensor.contents.ListFields()]
    values = tensor.contents.fp32_contents
    if len(values) != size or fields != ["fp32_contents"]:
        others = [field for field in fields if field != "fp32_contents"]
        also = f" and {others[0]}" if others else ""
        raise InvalidRequestError(
            f"{tensor.name} of shape {list(tensor.shape)} must hold {size} values in fp32_contents, or"
            f" {size * _FP32_BYTES} bytes in raw_input_contents, got {len(values)}{also}"
        )
    return np.fromiter(values, np.float32, count=size)
