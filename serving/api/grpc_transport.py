"""GrpcTransport: serves RPC services over gRPC."""

import asyncio
import functools
import itertools
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, NoReturn, cast

import grpc
import grpc.aio

from serving.access.guard import Guard, StreamAccess
from serving.access.roles import Role
from serving.access.tls import Certificates
from serving.access.tokens import Caller
from serving.api import grpc_port
from serving.api.call_handlers import CallHandlers, GrpcContext, GrpcHandler, ServeUnary, UnaryHandlers
from serving.api.cancellable_read import CancellableRead
from serving.api.grpc_options import server_options
from serving.api.held_bytes import HeldBytes
from serving.api.incomplete_messages import IncompleteMessages
from serving.api.open_call import CALL_BYTES, STREAM_BYTES, OpenCall
from serving.api.read_gate import ReadGate
from serving.api.rpc import Method, OverloadCheck, RpcContext, RpcService, UnaryMethod
from serving.errors import InvalidRequestError, ServingError
from serving.sockets import Address, UnixAddress

_CLOSE_S = 0.8  # for living peers to close their connections when the server stops
_STALLED_S = 10.0  # after which the calls of a connection that has no room and reads no replies are ended
_MAX_HELD_BYTES, _MAX_STREAMS = 512 << 20, 16384  # as the flags --max-held-mb and --max-streams
_GRPC_LOGGER = "grpc._cython.cygrpc"
_UNIX_PEER = "unix:"
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


class GrpcTransport:
    """A gRPC server on one port or Unix socket.

    Args:
        services: what it serves.
        max_request_bytes: larger requests are refused by gRPC itself, before they are read.
        max_held_bytes: limit of the bytes that are held for all connections (`serving.api.held_bytes`).
        max_streams: most open calls of one connection.
        max_connections: most open connections; None: any number. Further ones are closed.
        on_limit: called when a call is ended because its connection holds too many bytes.
        guard: checks who calls; None: anyone may call every method.
        share_port: whether other processes may listen on the port too.
        certificates: encrypt the connections to a port; None: they are plain text.
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
        guard: Guard | None = None,
        share_port: bool = False,
        certificates: Certificates | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._services = services
        self._certificates = certificates
        self._clock = clock
        self._on_limit = on_limit
        self._guard = guard
        self._gate = ReadGate(stalled_s=_STALLED_S, clock=clock)
        self._incomplete = IncompleteMessages(max_bytes=max_request_bytes, max_held_bytes=max_held_bytes, clock=clock)
        self._calls = itertools.count()
        self.held = HeldBytes(max_held_bytes)
        """The bytes that are held for the connections."""
        self._options = server_options(
            max_request_bytes=max_request_bytes,
            max_streams=max_streams,
            max_connections=max_connections,
            share_port=share_port,
        )
        self._server: grpc.aio.Server | None = None  # a server that is made and never started warns when Python exits
        self._socket: Path | None = None

    async def start(self, address: Address, *, flag: str = "--listen") -> Address:
        """Listen on `address`, which `flag` gives, and return it with the number of its port.

        gRPC removes the file of a Unix socket during `stop`.

        Raises:
            StartupError: the address cannot be bound.
        """
        server = grpc.aio.server(options=self._options)
        server.add_generic_rpc_handlers(self.handlers())
        # gRPC accepts calls in the order of arrival, each after several turns of the event loop, but those of a
        # registered method apart from the others. A thousand new streams therefore do not delay calls of other clients.
        for service in self._services:
            server.add_registered_method_handlers(service.name, self._streams(service))
        bound = grpc_port.bind(server, address, certificates=self._certificates, flag=flag)
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
        path, overload = f"/{service.name}/", service.overload
        checked = overload.methods if overload else ()
        unary = {
            path + name: UnaryHandlers(
                method.role,
                self._serve(path + name, method.serve),
                self._reading(path + name, method, overload if name in checked else None),
            )
            for name, method in service.unary.items()
        }
        return CallHandlers(
            unary,
            streams={path + name: stream for name, stream in self._streams(service).items()},
            is_overloaded=overload.is_active if overload else lambda: False,
            incomplete=self._incomplete,
            guard=self._guard,
        )

    def _streams(self, service: RpcService) -> dict[str, GrpcHandler]:
        return {name: self._stream(f"/{service.name}/{name}", method) for name, method in service.streams.items()}

    def _serve(self, name: str, method: UnaryMethod) -> ServeUnary:
        """Return what serves a unary call whose request gRPC has read."""

        async def serve(raw: bytes, context: GrpcContext, caller: Caller | None) -> bytes:
            try:
                rpc_context = self._context(name, context, caller)
                call = self._open(context, rpc_context)
                call.hold(len(raw))
                return await method(raw, rpc_context._replace(hold_reply=call.hold))
            except ServingError as error:
                del raw  # the exception that ends the call keeps this frame until a garbage collection
                await _abort(context, error)

        return serve

    def _reading(self, name: str, method: Method[..., Any], overload: OverloadCheck | None) -> GrpcHandler:
        """Return a handler of unary calls that reads the request itself.

        gRPC itself reads the request of a unary method before it calls the handler. Therefore this is the handler of a
        method with a stream of requests. On the wire there is no difference. It checks who calls, and under overload
        whether the call is rejected, before it reads the call.
        """

        async def serve(_requests: object, context: GrpcContext) -> bytes:
            call, raw = None, b""
            try:
                rpc_context = self._context(name, context, self._admit(method.role, name, context))
                if overload is not None and overload.is_active():
                    overload.check(rpc_context)
                call = self._open(context, rpc_context)
                if not call.has_room:
                    await call.wait_for_room()
                self._incomplete.begin(call)
                try:
                    raw = await _read(context, call)
                finally:
                    self._incomplete.end(call)
                if raw is grpc.aio.EOF:
                    raise InvalidRequestError("the call ended without a request")
                call.hold(len(raw))
                return await method.serve(raw, rpc_context._replace(hold_reply=call.hold))
            except ServingError as error:
                del raw
                await _abort(context, error)
            except asyncio.CancelledError as cancelled:
                await _end(context, call, cancelled)

        return grpc.stream_unary_rpc_method_handler(serve)

    def _stream(self, name: str, method: Method[..., AsyncGenerator[bytes]]) -> GrpcHandler:
        async def serve(_requests: object, context: GrpcContext) -> None:
            call = None
            try:
                access = self._admit_stream(method.role, name, context)
                rpc_context = self._stream_context(name, context, access)
                call = self._open(context, rpc_context, STREAM_BYTES)
                async with aclosing(method.serve(_Requests(context, call, access), rpc_context)) as replies:
                    async for reply in replies:
                        call.hold(len(reply))
                        await _write(context, reply)
                        call.sent(len(reply))
            except ServingError as error:
                await _abort(context, error)
            except asyncio.CancelledError as cancelled:
                await _end(context, call, cancelled)

        return grpc.stream_stream_rpc_method_handler(serve)

    def _admit(self, role: Role, name: str, context: GrpcContext) -> Caller | None:
        """Return who makes a call; None: anyone may. Raises ServingError if the call is refused."""
        if self._guard is None or role is Role.ANYONE:
            return None
        return self._guard.admit(role, context.invocation_metadata() or (), method=name, peer=context.peer())

    def _admit_stream(self, role: Role, name: str, context: GrpcContext) -> StreamAccess | None:
        """Return the access of a stream; None: anyone has it. Raises ServingError if the stream is refused."""
        if self._guard is None or role is Role.ANYONE:
            return None
        return self._guard.open_stream(role, context.invocation_metadata() or (), method=name, peer=context.peer())

    def _open(self, context: GrpcContext, rpc_context: RpcContext, size: int = 0) -> OpenCall:
        """Return the call of `context`, for which `size` bytes are held in addition to those of every call.

        Raises:
            MemoryLimitError: the connection holds too many bytes.
        """
        connection = self.held.connection(rpc_context.connection)
        call = OpenCall(connection, self._gate, size=CALL_BYTES + size, on_limit=self._on_limit)
        context.add_done_callback(cast("Any", call.end))
        call.hold(0)  # a connection that is over its limit opens no further call
        return call

    def _context(self, name: str, context: GrpcContext, who: Caller | None) -> RpcContext:
        now_s = self._clock()
        left_s = cast("float | None", context.time_remaining())  # the published type leaves out the None
        deadline_s = math.inf if left_s is None else now_s + left_s
        peer = caller = context.peer()
        if peer == _UNIX_PEER:  # the same for every connection: each call counts as a connection of its own
            peer, caller = f"{peer}{next(self._calls)}", ""
        metadata = functools.partial(_metadata, context)
        return RpcContext(name, deadline_s, peer, caller, metadata, token=who.token.name if who else "")

    def _stream_context(self, name: str, context: GrpcContext, access: StreamAccess | None) -> RpcContext:
        rpc_context = self._context(name, context, access.caller if access else None)
        rpc_context = rpc_context._replace(caller=f"{rpc_context.connection} {next(self._calls)}")
        return rpc_context._replace(count_message=access.count) if access else rpc_context


class _Requests(AsyncIterator[bytes]):
    """The requests of a stream. While its connection has no room, none is read."""

    def __init__(self, context: GrpcContext, call: OpenCall, access: StreamAccess | None = None) -> None:
        self._context = context
        self._call = call
        self._access = access

    async def __anext__(self) -> bytes:
        await self._call.may_read()
        raw = await _read(self._context, self._call)
        if raw is grpc.aio.EOF:
            raise StopAsyncIteration
        if self._access is not None:
            self._access.check()
        self._call.receive(len(raw))
        return raw


async def _read(context: GrpcContext, call: OpenCall) -> Any:
    """Receive the next message of a call; EOF: there is none.

    Raises:
        InvalidRequestError: gRPC cannot read it.
    """
    call.reading = reading = CancellableRead(cast("Any", context.read()))
    try:
        return await reading
    except grpc.aio.InternalError as error:
        raise InvalidRequestError("the message cannot be read, for example decompressed") from error


def _metadata(context: GrpcContext) -> Mapping[str, str]:
    """Return the metadata of a call without binary values, whose keys end with "-bin"."""
    return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}


async def _write(context: GrpcContext, reply: bytes) -> None:
    """Send one reply of a stream.

    Raises:
        asyncio.CancelledError: it could not be sent: the caller is gone.
    """
    try:
        await context.write(reply)
    except grpc.aio.InternalError as failed:
        raise asyncio.CancelledError from failed


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Return whether a log record of gRPC says more than what any caller can cause.

    That is a reply that could not be sent, or a header that is not UTF-8. gRPC logs the header, which may be a token.
    """
    return not (record.exc_info and isinstance(record.exc_info[1], grpc.aio.InternalError | UnicodeDecodeError))


async def _abort(context: GrpcContext, error: ServingError) -> NoReturn:
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


async def _end(context: GrpcContext, call: OpenCall | None, cancelled: asyncio.CancelledError) -> NoReturn:
    """End a call whose task was cancelled: with its failure, if it has one.

    Raises:
        asyncio.CancelledError: `cancelled`; the caller is gone.
        grpc.aio.AbortError: the call has failed.
    """
    if call is None or call.failure is None:
        raise cancelled
    task = asyncio.current_task()
    assert task
    task.uncancel()
    await _abort(context, call.failure)
