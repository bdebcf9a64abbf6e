"""The connection of a client to its server: channel options, methods, and the exception for each failure."""

from __future__ import annotations

import os
import threading
import urllib.parse
from typing import Any, Callable

import grpc

from kilolayer._internal import blocks_pb2
from kilolayer.errors import (
    AccessDenied,
    ClientClosed,
    DeadlineExceeded,
    InvalidRequest,
    KilolayerError,
    NotSupported,
    Overloaded,
    PolicyNotFound,
    ServerFailure,
    Unavailable,
)
from kilolayer.v1 import policy_pb2

CHANNEL_OPTIONS = (
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),  # despite its name: how long one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A server that lost power sends nothing, and TCP alone reports this after minutes, keepalive pings within 5 s.
    # A keepalive ping waits for any other ping in progress, whose own limit is a minute, so both limits are set.
    ("grpc.keepalive_time_ms", 3000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.ping_timeout_ms", 2000),
    ("grpc.max_receive_message_length", -1),  # gRPC's 4 MiB are less than the chunks of a request with many rows
)
READY_POLL_S = 0.1  # pause between two calls to a server that answers but is not ready
STREAM = "ActStream"

_SERVICE = "kilolayer.v1.Policy"
_UNARY: dict[str, tuple[type[Any], type[Any]]] = {
    "Act": (blocks_pb2.ActRequestBlocks, policy_pb2.ActResponse),
    "Score": (blocks_pb2.ScoreRequestBlocks, policy_pb2.ScoreResponse),
    "Describe": (policy_pb2.DescribeRequest, policy_pb2.DescribeResponse),
    "List": (policy_pb2.ListRequest, policy_pb2.ListResponse),
    "Report": (policy_pb2.ReportRequest, policy_pb2.ReportResponse),
}
_MAX_TIMEOUT_S = 1e9
_UNIX = "unix:"
_MAX_SOCKET_PATH_BYTES = 107  # of the kernel
_REASON_KEY = "kilolayer-reason"  # in the trailing metadata of a call that fails
_ALWAYS_ACCEPTED_BYTES = 65536  # every server accepts messages of this size, whatever its row limit

_LOOK_AT_SERVER_LOG = (ServerFailure, "The server's log says more")
_EXCEPTIONS: dict[grpc.StatusCode, tuple[type[KilolayerError], str]] = {
    grpc.StatusCode.INVALID_ARGUMENT: (InvalidRequest, "describe() gives the sizes and the row limit"),
    grpc.StatusCode.OUT_OF_RANGE: (InvalidRequest, "describe() gives the sizes and the row limit"),
    grpc.StatusCode.NOT_FOUND: (PolicyNotFound, "list_policies() gives the names and versions"),
    grpc.StatusCode.FAILED_PRECONDITION: (NotSupported, "describe().critic says whether the policy has a critic"),
    grpc.StatusCode.UNAUTHENTICATED: (AccessDenied, "Ask the server's operator for access"),
    grpc.StatusCode.PERMISSION_DENIED: (AccessDenied, "Ask the server's operator for access"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (Overloaded, "Send the next observation, not this one again"),
    grpc.StatusCode.UNAVAILABLE: (Unavailable, "Check the address, or send the next observation in a moment"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (DeadlineExceeded, "Send the next observation, or allow more time"),
    grpc.StatusCode.UNIMPLEMENTED: (ServerFailure, "Check that a Kilolayer server of this version is at the address"),
}
_CHECK_BEST_OF = (
    InvalidRequest,
    "describe() gives the sizes and the row limit; best_of is the number of candidates, and each counts as a row",
)
_MESSAGE_TOO_LARGE = (InvalidRequest, "Send fewer rows in one call")


def unary_methods(channel: Any) -> dict[str, Callable[..., Any]]:
    """Return the methods of one request and one reply, by name, on a channel of `grpc` or `grpc.aio`."""
    return {
        name: channel.unary_unary(
            f"/{_SERVICE}/{name}",
            request_serializer=request.SerializeToString,
            response_deserializer=reply.FromString,
        )
        for name, (request, reply) in _UNARY.items()
    }


def stream_method(channel: grpc.Channel) -> Callable[..., Any]:
    """Return ActStream on `channel`."""
    request, reply = _UNARY["Act"]
    return channel.stream_stream(
        f"/{_SERVICE}/{STREAM}",
        request_serializer=request.SerializeToString,
        response_deserializer=reply.FromString,
    )


class Endpoint:
    """The server that a client calls, the default timeout, and whether the client was closed.

    Raises:
        ValueError: the address has no port and no path, or the timeout is not a positive number.
    """

    def __init__(self, address: str, *, timeout_s: float) -> None:
        self.address: str = _check_address(address)
        self.target: str = _target(address)
        self.closed: threading.Event = threading.Event()
        self._timeout_s = _check_timeout(timeout_s)

    def timeout_s(self, timeout_s: float | None) -> float:
        """Return the timeout of a call in seconds: its own, or the client's if None. ValueError if not positive."""
        return self._timeout_s if timeout_s is None else _check_timeout(timeout_s)

    def require_open(self, method: str) -> None:
        """Raise ClientClosed if the client was closed."""
        if self.closed.is_set():
            raise self.client_closed(method)

    def rpc_failure(self, method: str, error: grpc.RpcError, *, request: Any, timeout_s: float) -> KilolayerError:
        """Return the exception for a call of `method` with `request` that ended with `error`."""
        # The error that gRPC raises from a call is also a Call. RpcError itself has no code and no details.
        assert isinstance(error, (grpc.Call, grpc.aio.AioRpcError))
        code = error.code()
        if code is grpc.StatusCode.CANCELLED and self.closed.is_set():
            return self.client_closed(method)
        return self.failure(
            method,
            code,
            details=error.details() or "",
            reason=_reason(error.trailing_metadata()),
            request=request,
            timeout_s=timeout_s,
        )

    def failure(
        self, method: str, code: grpc.StatusCode, *, details: str, reason: str = "", request: Any, timeout_s: float
    ) -> KilolayerError:
        """Return the exception for a status of a call of `method` with `request`."""
        kind, advice = _EXCEPTIONS.get(code, _LOOK_AT_SERVER_LOG)
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and not reason and request.ByteSize() > _ALWAYS_ACCEPTED_BYTES:
            # Our server gives a reason when it rejects a call for load. gRPC itself uses the same status, without a
            # reason, for a message that is too large.
            kind, advice = _MESSAGE_TOO_LARGE
        elif kind is InvalidRequest and getattr(request, "candidates", 0):
            kind, advice = _CHECK_BEST_OF
        happened = details.rstrip(".") or "no details"
        return kind(
            f"{method} at {self.address} failed ({code.name}, timeout {timeout_s:g} s): {happened}. {advice}.",
            status=code.name,
            reason=reason,
        )

    def client_closed(self, method: str) -> ClientClosed:
        """Return the exception for a call of `method` on a closed client."""
        return self._closed(method, "the client was closed. Make a new PolicyClient")

    def stream_closed(self) -> ClientClosed:
        """Return the exception for a call on a closed stream."""
        return self._closed(STREAM, "the stream was closed. Open another with client.stream()")

    def not_ready(self, timeout_s: float) -> DeadlineExceeded:
        """Return the exception for a server that was not ready in time."""
        return DeadlineExceeded(
            f"The server at {self.address} was not ready within {timeout_s} s. Start it, or check the address.",
            status=grpc.StatusCode.DEADLINE_EXCEEDED.name,
        )

    def _closed(self, method: str, problem: str) -> ClientClosed:
        return ClientClosed(f"{method} at {self.address} failed: {problem}.", status=grpc.StatusCode.CANCELLED.name)


def _reason(metadata: Any) -> str:
    """Return the reason in trailing metadata, as `grpc` or `grpc.aio` gives it; empty if there is none."""
    for key, value in metadata or ():
        if key == _REASON_KEY:
            return value
    return ""


def _check_address(address: str) -> str:
    if "://" in address and address.startswith(("http:", "https:", "grpc:")):
        raise ValueError(f"address must be host:port without a scheme, such as localhost:50051, got {address!r}")
    if ":" not in address:  # gRPC would use port 443 and report a refused connection
        raise ValueError(
            f"address must name a port, such as localhost:50051, or a Unix socket, such as unix:/run/kilolayer.sock,"
            f" got {address!r}"
        )
    if address.startswith(_UNIX) and not 0 < len(_socket_path(address)) <= _MAX_SOCKET_PATH_BYTES:
        raise ValueError(
            f"address must name a Unix socket with a path of at most {_MAX_SOCKET_PATH_BYTES} bytes, such as"
            f" unix:/run/kilolayer.sock, got {address!r}"
        )
    return address


def _target(address: str) -> str:
    """Return `address` as gRPC takes it, which reads a Unix socket as a URI: with `%`, `#` and `?` quoted."""
    return _UNIX + urllib.parse.quote(_socket_path(address)) if address.startswith(_UNIX) else address


def _socket_path(address: str) -> bytes:
    path = address[len(_UNIX) :]
    return os.fsencode(os.path.expanduser(path))  # noqa: PTH111  a Path would make `.` of an empty path


def _check_timeout(timeout_s: float) -> float:
    if not 0 < timeout_s < _MAX_TIMEOUT_S:
        raise ValueError(f"timeout_s must be a positive number of seconds, such as 0.05, got {timeout_s}")
    return timeout_s
