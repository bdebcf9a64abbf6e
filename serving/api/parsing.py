"""Read protobuf messages from bytes, with our own error for bytes that are not a message."""

from typing import Any, TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message

from serving.errors import InvalidRequestError

RequestMessage = TypeVar("RequestMessage", bound=Message)


def parse(raw: bytes, request_type: type[RequestMessage]) -> RequestMessage:
    """Read a message.

    Raises:
        InvalidRequestError: `raw` is not a `request_type` message.
    """
    try:
        return request_type.FromString(raw)
    except DecodeError as error:
        name = request_type.DESCRIPTOR.full_name
        raise InvalidRequestError(f"the {len(raw)} bytes of the request are not a {name} message") from error


def parse_blocks(raw: bytes, blocks_type: type[RequestMessage], public_type: type[Message]) -> RequestMessage:
    """Read a `public_type` message as `blocks_type`, which has its row blocks as bytes, without a loop over values.

    A packed `repeated float` has the same bytes as a `bytes` field. A sender may also encode it in pieces or value by
    value. Then `blocks_type` holds only a part of the message and is smaller than `raw`. Such a message is read as
    `public_type` instead, which is slow.

    Raises:
        InvalidRequestError: `raw` is not a `public_type` message.
    """
    try:
        request = blocks_type.FromString(raw)
        request.DiscardUnknownFields()
        if request.ByteSize() == len(raw):
            return request
    except DecodeError:
        pass  # `parse` fails too, and names the public message
    fields: dict[str, Any] = {}
    for field, value in parse(raw, public_type).ListFields():
        fields[field.name] = np.asarray(value, "<f4").tobytes() if field.is_repeated else value
    return blocks_type(**fields)
