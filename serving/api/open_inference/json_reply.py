"""Replies of the Open Inference Protocol over HTTP: the messages that gRPC has become JSON."""

import json
from typing import Any, NamedTuple, cast

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from serving.api.open_inference import open_inference_pb2 as pb
from serving.errors import InvalidRequestError

_MAX_VALUES = 8192  # in JSON; writing them takes about 20 ms of a slow core, in which nothing else is answered
_FLOAT = np.dtype("<f4")


class JsonReply(NamedTuple):
    """The body of a reply."""

    body: bytes
    json_bytes: int | None  # length of the JSON at its beginning, if binary values follow


def write(reply: pb.ModelInferResponse, *, binary: bool) -> JsonReply:
    """Return the reply to a request for actions.

    Args:
        binary: whether the values of the output follow the JSON.

    Raises:
        InvalidRequestError: JSON for so many values would take too long.
    """
    outputs = [
        _output(output, raw, binary=binary)
        for output, raw in zip(reply.outputs, reply.raw_output_contents, strict=True)
    ]
    content: dict[str, Any] = {"model_name": reply.model_name, "model_version": reply.model_version}
    if reply.id:
        content["id"] = reply.id
    if reply.parameters:
        content["parameters"] = {name: _value(each) for name, each in sorted(reply.parameters.items())}
    head = to_json(content | {"outputs": outputs})
    return JsonReply(b"".join([head, *reply.raw_output_contents]), len(head)) if binary else JsonReply(head, None)


def to_json(content: Any) -> bytes:
    """Return `content` as JSON in UTF-8."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()


def to_dict(message: Message) -> dict[str, Any]:
    """Return a message with the names of its fields, also of those with the value 0 or the empty string.

    Protobuf's own conversion writes integers of 64 bits as strings; clients of this protocol expect numbers.
    """
    return {
        field.name: _field(cast("FieldDescriptor", field), getattr(message, field.name))
        for field in message.DESCRIPTOR.fields
        if not field.has_presence or message.HasField(field.name)
    }


def _field(field: FieldDescriptor, value: Any) -> Any:
    return [_single(field, each) for each in value] if field.is_repeated else _single(field, value)


def _single(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type:
        return to_dict(value)
    return field.enum_type.values_by_number[value].name if field.enum_type else value


def _output(output: pb.ModelInferResponse.InferOutputTensor, raw: bytes, *, binary: bool) -> dict[str, Any]:
    about: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
    if binary:
        return about | {"parameters": {"binary_data_size": len(raw)}}
    count = len(raw) // _FLOAT.itemsize
    if count > _MAX_VALUES:
        raise InvalidRequestError(
            f"the reply has {count} values, and JSON may have at most {_MAX_VALUES}; set binary_data_output to true"
        )
    return about | {"data": np.frombuffer(raw, _FLOAT).tolist()}


def _value(parameter: pb.InferParameter) -> Any:
    kind = parameter.WhichOneof("parameter_choice")
    return getattr(parameter, kind) if kind else None
