"""Requests of ModelInfer over HTTP: JSON, with or without binary tensors, becomes the message that gRPC has.

The format is that of the Open Inference Protocol, with Triton's extension for binary tensors
(https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md): the JSON has the
length that a header states, and the values of the inputs follow it, each as long as its `binary_data_size` says.

The JSON parser of Python keeps the event loop from everything else, so the size of the JSON and the number of its
arrays and objects are limited before it is parsed. Errors name the place in the request. What the tensors must be for
the policy is checked later, for both transports (`serving.api.open_inference.tensors`).
"""

import itertools
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from serving.api.open_inference import open_inference_pb2 as pb
from serving.api.open_inference import tensors
from serving.errors import InvalidRequestError, echo

MAX_JSON_BYTES = 256 << 10  # about 12,000 numbers, which take 15 ms of a slow core; 60 ms for the worst JSON
HEADER = "Inference-Header-Content-Length"
_MAX_CONTAINERS = 64  # arrays and objects, in addition to one for each row
_BINARY_SIZE, _BINARY, _BINARY_OUTPUT = "binary_data_size", "binary_data", "binary_data_output"
_INT64, _UINT64 = 2**63, 2**64
_KINDS: dict[str, tuple[type, str]] = {
    "priority": (int, "an integer"),
    "timeout": (int, "an integer, in microseconds"),
    "robot_id": (str, "a string"),
}


class JsonRequest(NamedTuple):
    """A request, and the format that its reply has."""

    request: pb.ModelInferRequest
    binary: bool  # whether the values of the output are binary


def read(raw: bytes, *, json_bytes: int | None, model: str, version: str, max_rows: int) -> JsonRequest:
    """Read the body of a request.

    Args:
        json_bytes: length of the JSON at the beginning of `raw`, of the header; None: all of it.
        model: the name in the path.
        version: the version in the path; empty: the live one.
        max_rows: most rows of one request.

    Raises:
        InvalidRequestError: the body is not a request. The message names the place.
    """
    size = len(raw) if json_bytes is None else json_bytes
    if size > len(raw):
        raise InvalidRequestError(f"{HEADER} must be at most the {len(raw)} bytes of the body, got {size}")
    if size > MAX_JSON_BYTES:
        raise InvalidRequestError(f"the JSON may have at most {MAX_JSON_BYTES} bytes, got {size}; send binary tensors")
    body = _object(_parse(raw[:size], max_containers=_MAX_CONTAINERS + 2 * max_rows), "the request")
    parameters = _object(body.get("parameters", {}), "parameters")
    for name, (kind, about) in _KINDS.items():
        if name in parameters and type(parameters[name]) is not kind:
            raise InvalidRequestError(f"{name} must be {about}, got {_show(parameters[name])}")
    binary = _flag(parameters, _BINARY_OUTPUT, default=False)
    outputs = [_object(each, "an output") for each in _array(body.get("outputs", []), "outputs")]
    for output in outputs:
        binary = _flag(_object(output.get("parameters", {}), "parameters"), _BINARY, default=binary)
    if "inputs" not in body:
        raise InvalidRequestError(f"the inputs are missing; they are: {', '.join(tensors.INPUTS)}")
    inputs = _Inputs(raw, size)
    for each in _array(body["inputs"], "inputs"):
        inputs.add(_object(each, "an input"))
    inputs.check_end()
    request = pb.ModelInferRequest(
        model_name=model,
        model_version=version,
        id=_text(body.get("id", ""), "id"),
        parameters=_parameters(parameters, without=_BINARY_OUTPUT),
        inputs=inputs.tensors,
        outputs=[_output(each) for each in outputs],
        raw_input_contents=inputs.values,
    )
    return JsonRequest(request, binary)


class _Inputs:
    """The inputs of a request, and the binary data behind its JSON, which the inputs use one after another.

    Args:
        raw: the body.
        start: where the binary data begins.
    """

    def __init__(self, raw: bytes, start: int) -> None:
        self._raw = raw
        self._start = self._position = start
        self.tensors: list[pb.ModelInferRequest.InferInputTensor] = []
        self.values: list[bytes] = []  # of each tensor, little-endian

    def add(self, stated: dict[str, Any]) -> None:
        """Add the input that `stated` describes."""
        name = _required_text(stated, "name", "an input")
        datatype = _required_text(stated, "datatype", f"the input {echo(name)}")
        shape = _shape(stated.get("shape"), f"the shape of {echo(name)}")
        parameters = _object(stated.get("parameters", {}), "parameters")
        tensor = pb.ModelInferRequest.InferInputTensor(
            name=name, datatype=datatype, shape=shape, parameters=_parameters(parameters, without=_BINARY_SIZE)
        )
        tensors.check_parameters(tensor)
        has_data, is_binary = "data" in stated, _BINARY_SIZE in parameters
        if has_data == is_binary:
            got = "both" if has_data else "neither"
            raise InvalidRequestError(f"the input {echo(name)} must have data, or {_BINARY_SIZE}, got {got}")
        if is_binary:
            self.values.append(self._take(parameters[_BINARY_SIZE], name))
        else:
            self.values.append(_values(stated["data"], name, shape) if datatype == tensors.DATATYPE else b"")
        self.tensors.append(tensor)

    def check_end(self) -> None:
        """Refuse binary data that belongs to no input."""
        if self._position != len(self._raw):
            raise InvalidRequestError(
                f"the inputs must use the {len(self._raw) - self._start} bytes after the JSON, and their"
                f" {_BINARY_SIZE} add up to {self._position - self._start}"
            )

    def _take(self, size: Any, name: str) -> bytes:
        """Return the next `size` bytes of the binary data."""
        if type(size) is not int or size < 0:
            raise InvalidRequestError(f"{_BINARY_SIZE} of {echo(name)} must be a number of bytes, got {_show(size)}")
        left = len(self._raw) - self._position
        if size > left:
            raise InvalidRequestError(
                f"{_BINARY_SIZE} of {echo(name)} must be at most the {left} bytes that are left in the body, got"
                f" {_show(size)}; the header {HEADER} says where the binary data begins"
            )
        self._position += size
        return self._raw[self._position - size : self._position]


def _parse(raw: bytes, *, max_containers: int) -> Any:
    """Return the value that `raw` means. Raises InvalidRequestError if it is not JSON, or has too many arrays."""
    if raw.count(b"[") + raw.count(b"{") > max_containers:
        raise InvalidRequestError(f"the JSON may have at most {max_containers} arrays and objects; send flat data")
    try:
        return _DECODER.decode(raw.decode())
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"the JSON must be UTF-8, and byte {error.start} is not") from error
    except json.JSONDecodeError as error:
        raise InvalidRequestError(f"the request is not JSON: see character {error.pos} of {len(raw)}") from error
    except RecursionError as error:
        raise InvalidRequestError("the JSON is nested too deeply; send flat data") from error
    except ValueError as error:
        raise InvalidRequestError("the JSON has an integer with too many digits") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object with these keys and values. JSON parsers disagree about which of two equal keys counts."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise InvalidRequestError(f"an object has the key {echo(twice)} twice")
    return found


def _refuse_constant(name: str) -> None:
    raise InvalidRequestError(f"JSON has no {name}; send finite values")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant)


def _values(data: Any, name: str, shape: list[int]) -> bytes:
    """Return the values of an input as float32. `data` is flat, or an array of rows."""
    if len(shape) != 2 or min(shape) < 1:  # the product of more sizes could be a number of any length
        return b""  # `tensors` refuses the shape
    numbers = _array(data, f"data of {echo(name)}")
    if any(type(each) is list for each in numbers):
        if not all(type(row) is list and len(row) == shape[-1] for row in numbers):
            raise InvalidRequestError(
                f"data of {echo(name)} must be one array of numbers, or one array for each row with {shape[-1]} numbers"
            )
        numbers = list(itertools.chain.from_iterable(numbers))
    if not {*map(type, numbers)} <= {int, float}:
        wrong = next(each for each in numbers if type(each) not in (int, float))
        raise InvalidRequestError(f"data of {echo(name)} must hold numbers, got {_show(wrong)}")
    if len(numbers) != math.prod(shape):
        raise InvalidRequestError(
            f"{echo(name)} of shape {shape} must hold {math.prod(shape)} values in data, got {len(numbers)}"
        )
    try:
        values = np.array(numbers, np.float64)
    except OverflowError as error:
        raise InvalidRequestError(
            f"data of {echo(name)} has an integer that is too large for {tensors.DATATYPE}"
        ) from error
    with np.errstate(over="ignore"):  # infinite values are refused with the other checks of the tensor
        return values.astype("<f4").tobytes()


def _shape(stated: Any, name: str) -> list[int]:
    sizes = _array(stated, name)
    for size in sizes:
        if type(size) is not int or not -_INT64 <= size < _INT64:
            raise InvalidRequestError(f"{name} must hold integers, got {_show(size)}")
    return sizes


def _output(stated: dict[str, Any]) -> pb.ModelInferRequest.InferRequestedOutputTensor:
    parameters = _parameters(stated.get("parameters", {}), without=_BINARY)
    name = _required_text(stated, "name", "an output")
    return pb.ModelInferRequest.InferRequestedOutputTensor(name=name, parameters=parameters)


def _parameters(stated: Mapping[str, Any], *, without: str) -> dict[str, pb.InferParameter]:
    """Return parameters as gRPC has them, except `without`, which only HTTP has."""
    return {_text(name, "a parameter"): _parameter(name, value) for name, value in stated.items() if name != without}


def _parameter(name: str, value: Any) -> pb.InferParameter:
    if isinstance(value, bool):
        return pb.InferParameter(bool_param=value)
    if isinstance(value, str):
        return pb.InferParameter(string_param=_text(value, f"the parameter {echo(name)}"))
    if isinstance(value, float):
        return pb.InferParameter(double_param=value)
    if isinstance(value, int) and -_INT64 <= value < _INT64:
        return pb.InferParameter(int64_param=value)
    if isinstance(value, int) and 0 <= value < _UINT64:
        return pb.InferParameter(uint64_param=value)
    raise InvalidRequestError(
        f"the parameter {echo(name)} must be a string, a boolean or a number of at most 64 bits, got {_show(value)}"
    )


def _flag(parameters: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidRequestError(f"{name} must be true or false, got {_show(value)}")
    return value


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequestError(f"{name} must be an object, got {_show(value)}")
    return value


def _array(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidRequestError(f"{name} must be an array, got {_show(value)}")
    return value


def _required_text(stated: Mapping[str, Any], key: str, of: str) -> str:
    if key not in stated:
        raise InvalidRequestError(f"{of} has no {key}")
    return _text(stated[key], f"{key} of {of}")


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequestError(f"{name} must be a string, got {_show(value)}")
    if not value.isascii() and any("\ud800" <= each <= "\udfff" for each in value):
        raise InvalidRequestError(f"{name} has half of a surrogate pair, which is no character")
    return value


def _show(value: Any) -> str:
    """Return what a message says of a value of JSON."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "an array"
    return echo(value) if isinstance(value, str) else f"{json.dumps(value):.32}"
