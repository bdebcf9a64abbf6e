"""The channel that a client keeps to its server: its options, the methods called on it, and what its failures mean."""

import threading
from collections.abc import Callable
from typing import Any

import grpc

from kilolayer.errors import ClientClosed, DeadlineExceeded, KilolayerError, from_status
from kilolayer.v1 import blocks_pb2, policy_pb2

CHANNEL_OPTIONS = (
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),  # what gRPC calls so is the time that one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A server that lost power says nothing, and TCP alone notices after minutes. A keepalive waits behind any ping
    # already under way, whose own limit is a minute, so both limits are set.
    ("grpc.keepalive_time_ms", 3000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.ping_timeout_ms", 2000),
)
READY_POLL_S = 0.1  # between two questions to a server that answers, but is still starting
STREAM = "ActStream"

_SERVICE = "kilolayer.v1.Policy"
_UNARY: dict[str, tuple[type[Any], type[Any]]] = {
    "Act": (blocks_pb2.ActRequestBlocks, policy_pb2.ActResponse),
    "Score": (blocks_pb2.ScoreRequestBlocks, policy_pb2.ScoreResponse),
    "Describe": (policy_pb2.DescribeRequest, policy_pb2.DescribeResponse),
    "List": (policy_pb2.ListRequest, policy_pb2.ListResponse),
}
_LONGEST_S = 1e9


def unary_methods(channel: Any) -> dict[str, Callable[..., Any]]:
    """The methods of one request and one reply, by name, on a channel of `grpc` or `grpc.aio`."""
    return {
        name: channel.unary_unary(
            f"/{_SERVICE}/{name}",
            request_serializer=request.SerializeToString,
            response_deserializer=reply.FromString,
        )
        for name, (request, reply) in _UNARY.items()
    }


def stream_method(channel: grpc.Channel) -> Callable[..., Any]:
    """ActStream on `channel`."""
    request, reply = _UNARY["Act"]
    return channel.stream_stream(
        f"/{_SERVICE}/{STREAM}",
        request_serializer=request.SerializeToString,
        response_deserializer=reply.FromString,
    )


class Endpoint:
    """The server that a client calls, how long it may take, and whether the client was closed.

    Raises:
        ValueError: the address names no port, or the timeout is not a positive number.
    """

    def __init__(self, address: str, *, timeout_s: float) -> None:
        self.address = _check_address(address)
        self.closed = threading.Event()
        self._timeout_s = _check_timeout(timeout_s)

    def limit_s(self, timeout_s: float | None) -> float:
        """The seconds that a call may take: its own, or the client's if None. ValueError if that is no limit."""
        return self._timeout_s if timeout_s is None else _check_timeout(timeout_s)

    def require_open(self, name: str) -> None:
        """ClientClosed if the client was closed."""
        if self.closed.is_set():
            raise self.closed_error(name)

    def failure(self, name: str, error: grpc.RpcError, *, limit_s: float) -> KilolayerError:
        """What the failure of the call `name` means."""
        # What gRPC raises from a call is always also a Call; the bare RpcError has neither code nor details.
        assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)
        code = error.code()
        if code is grpc.StatusCode.CANCELLED and self.closed.is_set():
            return self.closed_error(name)
        return self.status_failure(name, code, details=error.details() or "", limit_s=limit_s)

    def status_failure(self, name: str, code: grpc.StatusCode, *, details: str, limit_s: float) -> KilolayerError:
        """What a status of the call `name` means."""
        return from_status(code, details, call=f"{name} at {self.address} within {limit_s:g} s")

    def closed_error(self, name: str) -> ClientClosed:
        """The client was closed before the call `name` was answered."""
        return self._closed_error(name, "the client was closed. Make a new PolicyClient")

    def stream_closed(self) -> ClientClosed:
        """The stream was closed before its call was answered."""
        return self._closed_error(STREAM, "the stream was closed. Open another with client.stream()")

    def not_ready(self, timeout_s: float) -> DeadlineExceeded:
        """A wait for the server was in vain."""
        return DeadlineExceeded(
            f"The server at {self.address} was not ready within {timeout_s} s. Start it, or check the address.",
            status=grpc.StatusCode.DEADLINE_EXCEEDED.name,
        )

    def _closed_error(self, name: str, reason: str) -> ClientClosed:
        return ClientClosed(f"{name} at {self.address} not answered: {reason}.", status=grpc.StatusCode.CANCELLED.name)


def _check_address(address: str) -> str:
    if "://" in address and address.startswith(("http:", "https:", "grpc:")):
        raise ValueError(f"address must be host:port without a scheme, such as localhost:50051, not {address!r}")
    if ":" not in address:  # gRPC would take port 443 and report a refused connection
        raise ValueError(f"address must name a port, such as localhost:50051, not {address!r}")
    return address


def _check_timeout(timeout_s: float) -> float:
    if not 0 < timeout_s < _LONGEST_S:
        raise ValueError(f"timeout_s must be a positive number of seconds, such as 0.05, not {timeout_s}")
    return timeout_s
