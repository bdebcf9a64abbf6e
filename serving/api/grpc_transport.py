"""GrpcTransport: serves RPC services over gRPC. This is the only file that imports gRPC."""

import asyncio
import functools
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, NoReturn, TypeAlias, cast

import grpc
import grpc.aio

from serving.api.rpc import OverloadCheck, RpcContext, RpcService, StreamMethod, UnaryMethod
from serving.errors import ServingError
from serving.sockets import bind_error, join_address

_PENDING_CALLS = 65536  # gRPC's default of 1000 silently cancels calls in a burst, before the queue can reject them
_SILENCE_MS = 5_000  # a peer that does not answer for this long is treated as dead
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}

_GrpcContext: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
_GrpcHandler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"


class GrpcTransport:
    """A gRPC server on one port.

    Args:
        services: what it serves.
        max_request_bytes: larger requests are refused by gRPC itself, before they are read.
        share_port: whether other processes may listen on the port too.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        services: Sequence[RpcService],
        *,
        max_request_bytes: int,
        share_port: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._services = services
        self._clock = clock
        self._options = [
            # Without workers, two servers must not share a port by accident: each would get some of the calls.
            ("grpc.so_reuseport", int(share_port)),
            ("grpc.max_receive_message_length", max_request_bytes),
            ("grpc.server.max_pending_requests", _PENDING_CALLS),
            ("grpc.server.max_pending_requests_hard_limit", 2 * _PENDING_CALLS),
            # A silent peer is dropped: within 5 s if it never says hello, else within 15 s.
            ("grpc.server_handshake_timeout_ms", _SILENCE_MS),
            ("grpc.keepalive_time_ms", 2 * _SILENCE_MS),
            ("grpc.keepalive_timeout_ms", _SILENCE_MS),
            ("grpc.http2.ping_timeout_ms", _SILENCE_MS),  # gRPC's default of a minute overrides the keepalive timeout
            # Clients may ping every second, also between calls. gRPC's default is every 5 minutes.
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
        ]
        self._server: grpc.aio.Server | None = None  # a server that is made and never started warns when Python exits

    async def start(self, host: str, port: int) -> int:
        """Open `port` (0: any free one) and return its number.

        Raises:
            StartupError: the port cannot be bound.
        """
        server = grpc.aio.server(options=self._options)
        server.add_generic_rpc_handlers(self.handlers())
        try:
            bound = server.add_insecure_port(join_address(host, port))
        except RuntimeError as error:
            raise bind_error("--port", host, port=port) from error
        await server.start()
        self._server = server
        return bound

    async def stop(self, grace_s: float) -> None:
        """Close the port to new calls, and cancel calls that have not ended after `grace_s`."""
        if self._server:
            await self._server.stop(grace_s)

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """Return the services, as gRPC takes them."""
        return tuple(map(self._handlers, self._services))

    def _handlers(self, service: RpcService) -> grpc.GenericRpcHandler:
        path = f"/{service.name}/"
        handlers = {path + name: self._unary(path + name, method) for name, method in service.unary.items()}
        handlers |= {path + name: self._stream(path + name, method) for name, method in service.streams.items()}
        if (overload := service.overload) is None:
            return _Handlers(handlers, checking={}, is_overloaded=lambda: False)
        checking = {
            path + name: self._checking(path + name, service.unary[name], overload) for name in overload.methods
        }
        return _Handlers(handlers, checking=checking, is_overloaded=overload.is_active)

    def _unary(self, name: str, method: UnaryMethod) -> _GrpcHandler:
        async def serve(raw: bytes, context: _GrpcContext) -> bytes:
            try:
                return await method(raw, self._context(name, context))
            except ServingError as error:
                await _abort(context, error)

        return grpc.unary_unary_rpc_method_handler(serve)

    def _checking(self, name: str, method: UnaryMethod, overload: OverloadCheck) -> _GrpcHandler:
        """Return a handler that checks a call before it reads it.

        gRPC itself reads the request of a unary method before it calls the handler. Therefore this is the handler of a
        method with a stream of requests, which reads them itself. On the wire there is no difference.
        """

        async def serve(_requests: object, context: _GrpcContext) -> bytes:
            try:
                rpc_context = self._context(name, context)
                overload.check(rpc_context)
                raw: Any = await context.read()
                return await method(b"" if raw is grpc.aio.EOF else raw, rpc_context)
            except ServingError as error:
                await _abort(context, error)

        return grpc.stream_unary_rpc_method_handler(serve)

    def _stream(self, name: str, method: StreamMethod) -> _GrpcHandler:
        async def serve(requests: AsyncIterator[bytes], context: _GrpcContext) -> None:
            try:
                async with aclosing(method(requests, self._context(name, context))) as replies:
                    async for reply in replies:
                        await context.write(reply)
            except ServingError as error:
                await _abort(context, error)

        return grpc.stream_stream_rpc_method_handler(serve)

    def _context(self, name: str, context: _GrpcContext) -> RpcContext:
        now_s = self._clock()
        left_s = cast("float | None", context.time_remaining())  # the published type leaves out the None
        deadline_s = math.inf if left_s is None else now_s + left_s
        return RpcContext(name, deadline_s, metadata=functools.partial(_metadata, context))


class _Handlers(grpc.GenericRpcHandler):
    """Gives gRPC the handler of each call.

    Args:
        handlers: by path, such as "/kilolayer.v1.Policy/Act".
        checking: handlers that check a call before they read it.
        is_overloaded: whether those of `checking` are used now.
    """

    def __init__(
        self,
        handlers: Mapping[str, _GrpcHandler],
        *,
        checking: Mapping[str, _GrpcHandler],
        is_overloaded: Callable[[], bool],
    ) -> None:
        self._handlers = handlers
        self._checking = checking
        self._is_overloaded = is_overloaded

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "_GrpcHandler | None":
        """Return the handler of a call that arrives; None: there is no such method."""
        path = handler_call_details.method
        if path in self._checking and self._is_overloaded():
            return self._checking[path]
        return self._handlers.get(path)


def _metadata(context: _GrpcContext) -> Mapping[str, str]:
    """Return the metadata of a call without binary values, whose keys end with "-bin"."""
    return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}


async def _abort(context: _GrpcContext, error: ServingError) -> NoReturn:
    """End a call with `error`.

    Raises:
        grpc.aio.AbortError: always; gRPC expects it from the handler.
        asyncio.CancelledError: the caller left at this very moment.
    """
    try:
        await context.abort(_CODES[error.status], str(error), error.trailers)
    except grpc.aio.InternalError as failed:  # the reply could not be sent
        raise asyncio.CancelledError from failed
