"""GrpcTransport: serves RPC services over gRPC. This is the only file that imports gRPC."""

import asyncio
import dataclasses
import functools
import itertools
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, NoReturn, TypeAlias, cast

import grpc
import grpc.aio

from serving.api.held_bytes import HeldBytes
from serving.api.open_call import CALL_BYTES, STREAM_BYTES, OpenCall
from serving.api.read_gate import ReadGate
from serving.api.rpc import OverloadCheck, RpcContext, RpcService, StreamMethod, UnaryMethod
from serving.errors import InvalidRequestError, ServingError, StartupError
from serving.sockets import Address, TcpAddress, UnixAddress, bind_error, may_bind

_PENDING_CALLS = 65536  # gRPC's default of 1000 silently cancels calls in a burst, before the queue can reject them
_SILENCE_MS = 5_000  # a peer that does not answer for this long is treated as dead
_CLOSE_S = 0.8  # for living peers to close their connections when the server stops
_STALLED_S = 10.0  # after which the calls of a connection that has no room and reads no replies are ended
_MAX_HELD_BYTES, _MAX_STREAMS = 512 << 20, 16384  # as the flags --max-held-mb and --max-streams
_GRPC_LOGGER = "grpc._cython.cygrpc"
_UNIX_PEER = "unix:"
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}

_GrpcContext: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
_GrpcHandler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"


class GrpcTransport:
    """A gRPC server on one port or Unix socket.

    Args:
        services: what it serves.
        max_request_bytes: larger requests are refused by gRPC itself, before they are read.
        max_held_bytes: limit of the bytes that are held for all connections (`serving.api.held_bytes`).
        max_streams: most open calls of one connection.
        max_connections: most open connections; None: any number. Further ones are closed.
        on_limit: called when a call is ended because its connection holds too many bytes.
        share_port: whether other processes may listen on the port too.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        services: Sequence[RpcService],
        *,
        max_request_bytes: int,
        max_held_bytes: int = _MAX_HELD_BYTES,
        max_streams: int = _MAX_STREAMS,
        max_connections: int | None = None,
        on_limit: Callable[[], None] = lambda: None,
        share_port: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._services = services
        self._clock = clock
        self._on_limit = on_limit
        self._gate = ReadGate(stalled_s=_STALLED_S, clock=clock)
        self._calls = itertools.count()
        self.held = HeldBytes(max_held_bytes)
        """The bytes that are held for the connections."""
        self._options = [
            # Without workers, two servers must not share a port by accident: each would get some of the calls.
            ("grpc.so_reuseport", int(share_port)),
            ("grpc.max_receive_message_length", max_request_bytes),
            ("grpc.max_concurrent_streams", max_streams),
            # Otherwise gRPC receives up to several megabytes of each stream in advance, instead of 64 KiB.
            ("grpc.http2.bdp_probe", 0),
            ("grpc.server.max_pending_requests", _PENDING_CALLS),
            ("grpc.server.max_pending_requests_hard_limit", 2 * _PENDING_CALLS),
            # A silent peer is dropped: within 5 s if it never speaks HTTP/2, else within 20 s.
            ("grpc.server_handshake_timeout_ms", _SILENCE_MS),
            ("grpc.keepalive_time_ms", 2 * _SILENCE_MS),
            ("grpc.keepalive_timeout_ms", _SILENCE_MS),
            ("grpc.http2.ping_timeout_ms", _SILENCE_MS),  # gRPC's default of a minute overrides the keepalive timeout
            # Clients may ping every second, also between calls. gRPC's default is every 5 minutes.
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
        ]
        if max_connections is not None:
            self._options.append(("grpc.max_allowed_incoming_connections", max_connections))
        self._server: grpc.aio.Server | None = None  # a server that is made and never started warns when Python exits
        self._socket: Path | None = None

    async def start(self, address: Address) -> Address:
        """Listen on `address`, and return it with the number of its port.

        gRPC removes the file of a Unix socket during `stop`.

        Raises:
            StartupError: the address cannot be bound.
        """
        server = grpc.aio.server(options=self._options)
        server.add_generic_rpc_handlers(self.handlers())
        bound = _bind_tcp(server, address) if isinstance(address, TcpAddress) else _bind_unix(server, address)
        await server.start()
        logging.getLogger(_GRPC_LOGGER).addFilter(_is_worth_a_line)
        self._server = server
        self._socket = bound.path if isinstance(bound, UnixAddress) else None
        return bound

    async def stop(self, grace_s: float) -> None:
        """Close the port to new calls, and cancel calls that have not ended after `grace_s`.

        gRPC waits until every connection is closed, and that of a dead peer never is. Therefore the connections are
        closed without waiting any longer once no call is open, though not in the first `_CLOSE_S`.
        """
        if not self._server:
            return
        closing = asyncio.create_task(self._close_without_calls(self._server))
        try:
            await self._server.stop(grace_s)
        finally:
            closing.cancel()
        ends_s = self._clock() + _CLOSE_S
        # gRPC removes the file from another thread, a moment later.
        while self._socket and self._socket.exists() and self._clock() < ends_s:  # noqa: ASYNC110  no event says so
            await asyncio.sleep(_CLOSE_S / 100)

    async def _close_without_calls(self, server: grpc.aio.Server) -> None:
        await asyncio.sleep(_CLOSE_S)
        while self.held.total:  # noqa: ASYNC110  an event would cost time in every call, for this second
            await asyncio.sleep(_CLOSE_S / 10)
        await server.stop(0)

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
                call = self._open(context)
                call.hold(len(raw))
                reply = await method(raw, self._context(name, context))
                call.hold(len(reply))
                return reply
            except ServingError as error:
                del raw  # the exception that ends the call keeps this frame until a garbage collection
                await _abort(context, error)

        return grpc.unary_unary_rpc_method_handler(serve)

    def _checking(self, name: str, method: UnaryMethod, overload: OverloadCheck) -> _GrpcHandler:
        """Return a handler that checks a call before it reads it.

        gRPC itself reads the request of a unary method before it calls the handler. Therefore this is the handler of a
        method with a stream of requests, which reads them itself. On the wire there is no difference.
        """

        async def serve(_requests: object, context: _GrpcContext) -> bytes:
            raw: Any = b""
            try:
                rpc_context = self._context(name, context)
                overload.check(rpc_context)
                call = self._open(context)
                raw = await _read(context, call)
                raw = b"" if raw is grpc.aio.EOF else raw
                call.hold(len(raw))
                reply = await method(raw, rpc_context)
                call.hold(len(reply))
                return reply
            except ServingError as error:
                del raw
                await _abort(context, error)

        return grpc.stream_unary_rpc_method_handler(serve)

    def _stream(self, name: str, method: StreamMethod) -> _GrpcHandler:
        async def serve(_requests: object, context: _GrpcContext) -> None:
            call = self._open(context, STREAM_BYTES)
            try:
                async with aclosing(method(_Requests(context, call), self._context(name, context))) as replies:
                    async for reply in replies:
                        call.hold(len(reply))
                        await _write(context, reply)
                        call.sent(len(reply))
            except ServingError as error:
                await _abort(context, error)
            except asyncio.CancelledError:
                if call.failure is None:
                    raise  # the caller is gone
                task = asyncio.current_task()
                assert task
                task.uncancel()
                await _abort(context, call.failure)

        return grpc.stream_stream_rpc_method_handler(serve)

    def _open(self, context: _GrpcContext, size: int = 0) -> OpenCall:
        """Return the call of `context`, for which `size` bytes are held in addition to those of every call."""
        peer = context.peer()
        if peer == _UNIX_PEER:  # the same for every connection: count each call as a connection of its own
            peer += str(next(self._calls))
        connection = self.held.connection(peer)
        call = OpenCall(connection, self._gate, size=CALL_BYTES + size, on_limit=self._on_limit)
        context.add_done_callback(cast("Any", call.end))
        return call

    def _context(self, name: str, context: _GrpcContext) -> RpcContext:
        now_s = self._clock()
        left_s = cast("float | None", context.time_remaining())  # the published type leaves out the None
        deadline_s = math.inf if left_s is None else now_s + left_s
        return RpcContext(name, deadline_s, metadata=functools.partial(_metadata, context))


def _bind_tcp(server: grpc.aio.Server, address: TcpAddress) -> TcpAddress:
    try:
        return dataclasses.replace(address, port=server.add_insecure_port(str(address)))
    except RuntimeError as error:
        raise bind_error("--listen", address) from error


def _bind_unix(server: grpc.aio.Server, address: UnixAddress) -> UnixAddress:
    with may_bind(address):
        try:
            server.add_insecure_port(address.uri)
        except RuntimeError as error:
            raise StartupError(f"cannot listen on {address}: gRPC cannot bind it; choose another path") from error
    return address


class _Requests(AsyncIterator[bytes]):
    """The requests of a stream. While its connection has no room, none is read."""

    def __init__(self, context: _GrpcContext, call: OpenCall) -> None:
        self._context = context
        self._call = call

    async def __anext__(self) -> bytes:
        await self._call.may_read()
        raw = await _read(self._context, self._call)
        if raw is grpc.aio.EOF:
            raise StopAsyncIteration
        self._call.receive(len(raw))
        return raw


class _Read:
    """A read that can be cancelled.

    gRPC stores the message at an address inside its own coroutine. If that ended because its task is cancelled, gRPC
    would later write to memory that belongs to something else. Therefore a cancellation does not reach the coroutine,
    which lives as long as this object: until the call has ended.
    """

    __slots__ = ("_read",)

    def __init__(self, read: Coroutine[Any, Any, Any]) -> None:
        self._read = read

    def __await__(self) -> Generator[Any, Any, Any]:
        try:
            while True:
                yield self._read.send(None)
        except StopIteration as end:
            return end.value


async def _read(context: _GrpcContext, call: OpenCall) -> Any:
    """Receive the next message of a call; EOF: there is none.

    Raises:
        InvalidRequestError: gRPC cannot read it.
    """
    call.reading = reading = _Read(cast("Any", context.read()))
    try:
        return await reading
    except grpc.aio.InternalError as error:
        raise InvalidRequestError("the message cannot be read, for example decompressed") from error


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


async def _write(context: _GrpcContext, reply: bytes) -> None:
    """Send one reply of a stream.

    Raises:
        asyncio.CancelledError: it could not be sent: the caller is gone.
    """
    try:
        await context.write(reply)
    except grpc.aio.InternalError as failed:
        raise asyncio.CancelledError from failed


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Return whether a log record of gRPC says more than that a reply could not be sent, which any caller can cause."""
    return not (record.exc_info and isinstance(record.exc_info[1], grpc.aio.InternalError))


async def _abort(context: _GrpcContext, error: ServingError) -> NoReturn:
    """End a call with `error`, and forget where it was raised: those frames hold the request.

    Raises:
        grpc.aio.AbortError: always; gRPC expects it from the handler.
        asyncio.CancelledError: the caller left at this very moment.
    """
    error.__traceback__ = None
    try:
        await context.abort(_CODES[error.status], str(error), error.trailers)
    except grpc.aio.InternalError as failed:  # the reply could not be sent
        raise asyncio.CancelledError from failed
