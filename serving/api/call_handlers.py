"""CallHandlers: chooses what serves a call, when gRPC has received its metadata and not yet its request.

gRPC itself reads the request of a unary call fastest. A handler that reads the request itself is used for a call that
may not be read: because of who calls, under overload, or while too many requests are incomplete. With tokens, it is
also used for the methods that need none.
"""

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NamedTuple, TypeAlias, cast

import grpc
import grpc.aio

from serving.access.guard import Guard
from serving.access.roles import Role
from serving.access.tokens import Caller
from serving.api.incomplete_messages import IncompleteMessages

GrpcContext: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
GrpcHandler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"
ServeUnary: TypeAlias = "Callable[[bytes, GrpcContext, Caller | None], Coroutine[Any, Any, bytes]]"


class UnaryHandlers(NamedTuple):
    """What serves the calls of one unary method."""

    role: Role
    serve: ServeUnary  # a call that is allowed, and whose request gRPC has read
    reading: GrpcHandler  # any call; it makes all checks itself, then reads the request


class CallHandlers(grpc.GenericRpcHandler):
    """Gives gRPC the handler of each call.

    Args:
        unary: the handlers of unary methods, by path, such as "/kilolayer.v1.Policy/Act".
        streams: handlers of streams, by path.
        is_overloaded: whether unary calls are checked before they are read.
        incomplete: if it is full, gRPC reads no further request.
        guard: checks who calls; None: anyone may call every method.
    """

    def __init__(
        self,
        unary: Mapping[str, UnaryHandlers],
        *,
        streams: Mapping[str, GrpcHandler],
        is_overloaded: Callable[[], bool],
        incomplete: IncompleteMessages,
        guard: Guard | None = None,
    ) -> None:
        self._unary = unary
        self._streams = streams
        self._is_overloaded = is_overloaded
        self._incomplete = incomplete
        self._guard = guard

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "GrpcHandler | None":
        """Return the handler of a call that arrives; None: there is no such method."""
        path = handler_call_details.method
        handlers = self._unary.get(path)
        if handlers is None:
            return self._streams.get(path)
        if self._incomplete.is_full or self._is_overloaded():
            return handlers.reading
        caller = None
        if self._guard is not None:
            if handlers.role is Role.ANYONE:
                return handlers.reading  # callers without a token must not take what gRPC reads from the others
            caller = self._guard.check(handlers.role, handler_call_details.invocation_metadata)
            if caller is None:
                return handlers.reading  # it refuses the call
        return cast("GrpcHandler", _UnaryHandler(handlers.serve, self._incomplete, caller))


class _UnaryHandler:
    """gRPC's handler of one unary call. It counts the request until that has arrived or the call has ended."""

    request_streaming = response_streaming = False
    request_deserializer = response_serializer = None

    def __init__(self, serve: ServeUnary, incomplete: IncompleteMessages, caller: Caller | None) -> None:
        self._serve = serve
        self._caller = caller
        self._incomplete: IncompleteMessages | None = incomplete
        incomplete.read_by_grpc += 1

    async def unary_unary(self, raw: bytes, context: GrpcContext) -> bytes:
        """Serve the call, whose request has arrived."""
        self._release()
        serving = self._serve(raw, context, self._caller)
        del raw
        return await serving

    def __del__(self) -> None:
        self._release()

    def _release(self) -> None:
        if self._incomplete:
            self._incomplete.read_by_grpc -= 1
            self._incomplete = None
