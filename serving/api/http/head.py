"""The head of an HTTP request: what its first line and its headers say, and whether a server may trust them."""

from typing import NamedTuple

import h11

from serving.api.http.exchange import CLOSE, HttpReply, HttpRequest, error_reply

_VERSIONS = (b"1.0", b"1.1")
_AMBIGUOUS = "the length of the body is ambiguous; send either Content-Length or, in HTTP/1.1, chunks"


class Head(NamedTuple):
    """The head of a request."""

    request: HttpRequest
    body_bytes: int | None  # None: the body comes in chunks
    refusal: HttpReply | None  # None: the request may be answered


def read_head(event: h11.Request) -> Head:
    """Return what h11 has read."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in event.headers:
        name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    body_bytes = None if "transfer-encoding" in headers else int(headers.get("content-length", 0))
    refusal = None
    if event.http_version not in _VERSIONS:
        refusal = error_reply(505, "the version of HTTP must be 1.1, or 1.0", CLOSE)
    elif body_bytes is None and (event.http_version == b"1.0" or "content-length" in headers):
        # A proxy that reads another length than h11 would take the rest of this request for the next one.
        refusal = error_reply(400, _AMBIGUOUS, CLOSE)
    return Head(HttpRequest(event.method.decode("ascii"), event.target.decode("ascii"), headers), body_bytes, refusal)
