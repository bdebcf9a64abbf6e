"""The connection of a client to its server: channel options, methods, and the exception for each failure."""

from __future__ import annotations

import json
import os
import threading
from typing import Any, Callable, Optional

import grpc
import grpc.aio

from kilolayer._access import Access, TlsSetting, resolve_access
from kilolayer._address import Address, parse_address
from kilolayer._advice import advice as advice_for
from kilolayer._connect_failures import Security, explain, is_unreachable
from kilolayer._forks import forks
from kilolayer._internal import blocks_pb2
from kilolayer._meaning import LATE_REPLY, check_timeout, meaning, sentence
from kilolayer._renewal import Renewal, RenewedAsyncChannel, RenewedChannel
from kilolayer._token import TokenSource
from kilolayer.errors import (
    AccessDenied,
    ClientClosed,
    DeadlineExceeded,
    InvalidRequest,
    KilolayerError,
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
    ("grpc.dns_min_time_between_resolutions_ms", 1000),  # a restarted server may have another IP address
)
READY_POLL_S = 0.1  # pause between two calls to a server that answers but is not ready
STREAM = "ActStream"

Metadata = Optional[tuple[tuple[str, str], ...]]

_SERVICE = "kilolayer.v1.Policy"
# Servers get calls in turn. One that is NOT_SERVING or cannot be reached gets none.
_BALANCED = json.dumps({"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}})
_UNARY: dict[str, tuple[type[Any], type[Any]]] = {
    "Act": (blocks_pb2.ActRequestBlocks, policy_pb2.ActResponse),
    "Score": (blocks_pb2.ScoreRequestBlocks, policy_pb2.ScoreResponse),
    "Describe": (policy_pb2.DescribeRequest, policy_pb2.DescribeResponse),
    "List": (policy_pb2.ListRequest, policy_pb2.ListResponse),
    "Report": (policy_pb2.ReportRequest, policy_pb2.ReportResponse),
}
_NO_PROXY = (("grpc.enable_http_proxy", 0), ("grpc.address_http_proxy_enabled_addresses", ""))
_REASON_KEY = "kilolayer-reason"  # in the trailing metadata of a call that fails
_ALWAYS_ACCEPTED_BYTES = 65536  # every server accepts messages of this size, whatever its row limit

_START_IT, _WAIT_LONGER = "Start it, or check the address", "Allow more time, or look at the server's log"
_MESSAGE_TOO_LARGE = (InvalidRequest, "Send fewer rows in one call")


def unary_methods(channel: Any, metadata: Callable[[], Metadata]) -> dict[str, Callable[..., Any]]:
    """Return the methods of one request and one reply, by name, on a channel of `grpc` or `grpc.aio`.

    Each call sends what `metadata` returns at that time.
    """
    return {
        name: _with_metadata(
            channel.unary_unary(
                f"/{_SERVICE}/{name}",
                request_serializer=request.SerializeToString,
                response_deserializer=reply.FromString,
            ),
            metadata,
        )
        for name, (request, reply) in _UNARY.items()
    }


def stream_method(channel: grpc.Channel | RenewedChannel, metadata: Callable[[], Metadata]) -> Callable[..., Any]:
    """Return ActStream on `channel`. Each stream sends what `metadata` returns when it opens."""
    request, reply = _UNARY["Act"]
    method = channel.stream_stream(
        f"/{_SERVICE}/{STREAM}",
        request_serializer=request.SerializeToString,
        response_deserializer=reply.FromString,
    )
    return _with_metadata(method, metadata)


def _with_metadata(method: Callable[..., Any], metadata: Callable[[], Metadata]) -> Callable[..., Any]:
    def call(request: Any, **options: Any) -> Any:
        return method(request, metadata=metadata(), **options)

    return call


class Endpoint:
    """The server that a client calls, how it is let in, the default timeout, and whether the client was closed.

    The arguments are those of `PolicyClient`.

    Raises:
        ValueError: the address, the timeout, a file or a value is wrong; the message says what would work.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float,
        tls: TlsSetting = None,
        token: TokenSource | None = None,
        server_name: str | None = None,
    ) -> None:
        self._address: Address = parse_address(address)
        self._access: Access = resolve_access(
            self._address, tls=tls, token=token, server_name=server_name, environment=os.environ
        )
        self._proxy_variable = self._address.proxy_variable(os.environ)
        self.address: str = self._address.text
        self.closed: threading.Event = threading.Event()
        self._timeout_s = check_timeout(timeout_s)
        self._renewal = Renewal()

    def renew(self) -> None:
        """Replace the event, whose lock a thread of the parent may have held at the fork."""
        was_closed, self.closed = self.closed.is_set(), threading.Event()
        if was_closed:
            self.closed.set()

    def open_channel(self) -> grpc.Channel | RenewedChannel:
        """Return a new channel to the server. It connects with the first call."""
        return RenewedChannel(self._open, self._renewal) if self._address.is_name else self._open()

    def open_async_channel(self) -> grpc.aio.Channel | RenewedAsyncChannel:
        """Return a new channel of `grpc.aio` to the server. It connects with the first call."""
        return RenewedAsyncChannel(self._open_async, self._renewal) if self._address.is_name else self._open_async()

    def channel_options(self) -> list[tuple[str, Any]]:
        """Return the options of a channel to the server."""
        options: list[tuple[str, Any]] = [*CHANNEL_OPTIONS, ("kilolayer.generation", forks.generation)]
        if self._address.is_balanced:
            options.append(("grpc.service_config", _BALANCED))
        if self._address.connects_directly:
            options += _NO_PROXY
        if self._access.server_name:
            options.append(("grpc.ssl_target_name_override", self._access.server_name))
        return options

    def metadata(self) -> Metadata:
        """Return the metadata of the next call: the token."""
        return None if self._access.token is None else self._access.token.metadata()

    def timeout_s(self, timeout_s: float | None) -> float:
        """Return the timeout of a call in seconds: its own, or the client's if None. ValueError if not positive."""
        return self._timeout_s if timeout_s is None else check_timeout(timeout_s)

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
        kind, advice = meaning(method, code, reason=reason, has_candidates=bool(getattr(request, "candidates", 0)))
        happened = details.rstrip(".") or "no details"
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and not reason and request.ByteSize() > _ALWAYS_ACCEPTED_BYTES:
            # Our server gives a reason when it rejects a call for load. gRPC itself uses the same status, without a
            # reason, for a message that is too large.
            kind, advice = _MESSAGE_TOO_LARGE
        elif kind is AccessDenied:
            advice = self._access_advice(code)
        elif not reason and kind in (Unavailable, DeadlineExceeded):
            if is_unreachable(happened):
                self._renewal.failed()
            happened, advice = self._explain(
                happened, advice, if_not_ready=advice_for(method, status=code.name, reason="not_ready")
            )
        error = kind(
            sentence(f"{method} at {self.address}", code, timeout_s=timeout_s, happened=happened, advice=advice),
            status=code.name,
            reason=reason,
        )
        error._details = details  # pyright: ignore[reportPrivateUsage]
        return error

    def late_reply(self, method: str, *, request: Any, timeout_s: float) -> KilolayerError:
        """Return the exception for a reply that came after the deadline of its call."""
        code = grpc.StatusCode.DEADLINE_EXCEEDED
        return self.failure(method, code, details=LATE_REPLY, request=request, timeout_s=timeout_s)

    def client_closed(self, method: str) -> ClientClosed:
        """Return the exception for a call of `method` on a closed client."""
        return self._closed(method, "the client was closed. Make a new client")

    def stream_closed(self) -> ClientClosed:
        """Return the exception for a call on a closed stream."""
        return self._closed(STREAM, "the stream was closed. Open another with client.stream()")

    def not_ready(self, timeout_s: float, last_error: KilolayerError | None) -> DeadlineExceeded:
        """Return the exception for a server that was not ready in time; `last_error` says why, if it is Unavailable."""
        cause, advice = "", f"{_START_IT}{self._proxy_advice()}"
        if isinstance(last_error, Unavailable):
            details = last_error._details.rstrip(".") or "no details"  # pyright: ignore[reportPrivateUsage]
            advice = _START_IT if not last_error.reason and is_unreachable(details) else _WAIT_LONGER
            if not last_error.reason:
                details, advice = self._explain(details, advice, if_not_ready=_WAIT_LONGER)
            cause = f" The last attempt failed: {details}."
        return DeadlineExceeded(
            f"The server at {self.address} was not ready within {timeout_s} s.{cause} {advice}.",
            status=grpc.StatusCode.DEADLINE_EXCEEDED.name,
        )

    def _open(self) -> grpc.Channel:
        target, credentials, options = self._address.target, self._access.credentials, self.channel_options()
        if credentials is None:
            return grpc.insecure_channel(target, options=options)
        return grpc.secure_channel(target, credentials, options=options)

    def _open_async(self) -> grpc.aio.Channel:
        target, credentials, options = self._address.target, self._access.credentials, self.channel_options()
        if credentials is None:
            return grpc.aio.insecure_channel(target, options=options)
        return grpc.aio.secure_channel(target, credentials, options=options)

    def _explain(self, happened: str, advice: str, *, if_not_ready: str) -> tuple[str, str]:
        """Return what happened and an advice, with the likely cause if the connection failed, and a proxy if any.

        Args:
            happened: gRPC's details.
            advice: if they say enough themselves.
            if_not_ready: the advice if no server is ready.
        """
        tls = self._access.tls
        name = self._access.server_name or next(iter(self._address.hosts), "localhost")
        explained = explain(happened, Security(tls is not None, tls is not None and tls.ca is not None, name))
        if explained is not None:
            happened, advice = f"{explained[0]} ({happened})", explained[1] or if_not_ready
        return happened, advice + self._proxy_advice()

    def _proxy_advice(self) -> str:
        """Return what to do about a proxy, to follow another advice; empty without a proxy."""
        if not self._proxy_variable:
            return ""
        return (
            f". The variable {self._proxy_variable} sends this connection to a proxy: unset it, or add"
            f" {self._address.hosts[0]} to no_proxy"
        )

    def _access_advice(self, code: grpc.StatusCode) -> str:
        """Return what to do about UNAUTHENTICATED or PERMISSION_DENIED. A token in a file is read again."""
        token, ask = self._access.token, "ask the server's operator for access"
        if token is None:
            return f"Pass a token, or set KILOLAYER_TOKEN_FILE; {ask}"
        problem = "is not allowed to do this"
        if code is not grpc.StatusCode.PERMISSION_DENIED:
            token.refused()
            problem = "was not accepted"
        if token.problem:
            problem += f", and a new one could not be read since: {token.problem}. Correct the file, or {ask}"
            return f"The token from {token.origin} {problem}"
        return f"The token from {token.origin} {problem}; {ask}"

    def _closed(self, method: str, problem: str) -> ClientClosed:
        return ClientClosed(f"{method} at {self.address} failed: {problem}.", status=grpc.StatusCode.CANCELLED.name)


def _reason(metadata: Any) -> str:
    """Return the reason in trailing metadata, as `grpc` or `grpc.aio` gives it; empty if there is none."""
    for key, value in metadata or ():
        if key == _REASON_KEY:
            return value
    return ""
