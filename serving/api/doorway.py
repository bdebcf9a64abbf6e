"""Doorway: in a crowd, sheds calls before it reads them, since reading is a quarter of what refusing costs.

gRPC asks which handler serves a call when only its method is known. While calls are being shed it is handed one for
streams, which receives nothing by itself: this one first asks whether the policies would let in any call with so
little time left. A call that they might let in is read, and goes the usual way. On the wire there is no difference.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias, cast

import grpc
import grpc.aio

from serving.api.handlers import Calls, Context, refuse, remaining_s
from serving.engine.engine import Kind
from serving.policies.registry import PolicyRegistry

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Handle: TypeAlias = Callable[[bytes, Context], Awaitable[bytes]]


class Doorway(grpc.GenericRpcHandler):
    """The methods of one service.

    Args:
        service: its name.
        methods: every method by name.
        judged: those, of one request and one reply, that compute, with the least that they do.
        policies: whose batchers know whether there is a crowd.
        calls: counts outcomes, and knows when the server closes.
    """

    def __init__(
        self,
        service: str,
        methods: Mapping[str, Handler],
        judged: Mapping[str, Kind],
        *,
        policies: PolicyRegistry,
        calls: Calls,
    ) -> None:
        self._service = service
        self._policies = policies
        self._calls = calls
        self._methods = {f"/{service}/{method}": handler for method, handler in methods.items()}
        self._judging = {
            f"/{service}/{method}": self._judge(method, methods[method], kind) for method, kind in judged.items()
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """The handler of a call that begins; None: there is no such method here."""
        method = handler_call_details.method
        if method in self._judging and self._policies.crowded() and not self._calls.closing:
            return self._judging[method]
        return self._methods.get(method)

    def _judge(self, method: str, handler: Handler, kind: Kind) -> Handler:
        """A handler that reads a call, and goes on as `handler` does, only if it may be let in."""
        handle = cast("_Handle", handler.unary_unary)

        async def judge(_requests: object, context: Context) -> bytes:
            shed = self._policies.judge_unread(kind, timeout_s=remaining_s(context))
            if shed:
                self._calls.reject_unread(method, shed.reason, context=context, service=self._service)
                await refuse(context, shed.error())
            raw = await context.read()
            return await handle(b"" if raw is grpc.aio.EOF else raw, context)

        return grpc.stream_unary_rpc_method_handler(judge)
