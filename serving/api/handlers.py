"""Calls: what every gRPC method has in common.

Requests arrive as bytes and are parsed here rather than by gRPC, so that bytes which are no request get a status and a
message of ours. Every call is counted by its outcome, and only errors and texts of ours leave the server.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, TypeVar

import grpc
import grpc.aio

from serving.errors import OverloadedError, ServingError, UnavailableError, UnexpectedError
from serving.telemetry.metrics import UNKNOWN_POLICY, UNREAD_POLICY, Metrics

if TYPE_CHECKING:
    from serving.api.tracing import Tracing

SERVICE_NAME = "kilolayer.v1.Policy"  # ours, of which a method is unless said otherwise
_LOGGER = logging.getLogger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Request = TypeVar("Request")


class Calls:
    """Wraps the methods of a server, and knows whether it is closing.

    Args:
        metrics: receives the outcome of every call.
        tracing: makes a span of every call; None: none are made.
        clock: monotonic seconds.
    """

    def __init__(
        self, metrics: Metrics, *, tracing: "Tracing | None" = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._metrics = metrics
        self.tracing = tracing
        self.clock = clock
        self.closing = False
        self._let_go = asyncio.Event()
        self._streams: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        """From now on hold new calls, and read no more from streams. `let_go` refuses what is held.

        A caller that were refused at once would try again on the same connection, and gRPC cancels without a word
        what it has not yet handed to us when it shuts down. One that waits sends nothing.
        """
        self.closing = True
        for reader in self._streams:
            reader.cancel()

    def let_go(self) -> None:
        """Refuse the calls that were held, now that gRPC has told their connections to close."""
        self._let_go.set()

    def watch(self, reader: "asyncio.Task[None]") -> None:
        """Cancel `reader`, which reads the requests of a stream, when the server closes."""
        self._streams.add(reader)
        reader.add_done_callback(self._streams.discard)

    async def refuse_if_closing(self) -> None:
        """Hold a new call if the server is closing.

        Raises:
            UnavailableError: it is; in time for the connection to close first.
        """
        if self.closing:
            await self._let_go.wait()
            raise UnavailableError("the server is shutting down; connect to another, or again in a moment")

    def count(self, method: str, policy: str, *, code: grpc.StatusCode, started_s: float) -> None:
        """One call, or one request of a stream, ended."""
        self._metrics.observe_request(method, policy, code=code.name, total_s=self.clock() - started_s)

    def reject_unread(self, method: str, reason: str, *, context: Context, service: str = SERVICE_NAME) -> None:
        """A call was shed before it was read, for one of `metrics.REJECTION_REASONS`."""
        code = OverloadedError.status
        self._metrics.count_rejected_unread(reason)
        self.count(method, UNREAD_POLICY, code=code, started_s=self.clock())
        if self.tracing:
            self.tracing.begin(method, context, service=service).end(UNREAD_POLICY, code)

    def unary(
        self,
        method: str,
        *,
        parse: Callable[[bytes], Request],
        label: Callable[[Request], str],
        answer: Callable[[Request, Context], Awaitable[bytes]],
        service: str = SERVICE_NAME,
    ) -> "grpc.RpcMethodHandler[bytes, bytes]":
        """A method of one request and one reply.

        Args:
            parse: bytes to a request; may raise a ServingError.
            label: the policy that a request means, for the metrics.
            answer: the reply, serialised.
            service: that the method is of, for its spans.
        """

        async def handle(raw: bytes, context: Context) -> bytes:
            started_s = self.clock()
            policy = UNKNOWN_POLICY
            span = self.tracing.begin(method, context, service=service) if self.tracing else None
            try:
                request = parse(raw)
                policy = label(request)
                await self.refuse_if_closing()
                reply = await answer(request, context)
            except BaseException as error:
                failure, code = self.failure(error, method, context=context)
                self.count(method, policy, code=code, started_s=started_s)
                if span:
                    span.end(policy, code)
                if failure is None:
                    raise
                return await refuse(context, failure)
            self.count(method, policy, code=grpc.StatusCode.OK, started_s=started_s)
            if span:
                span.end(policy, grpc.StatusCode.OK)
            return reply

        return grpc.unary_unary_rpc_method_handler(handle)

    def failure(
        self, error: BaseException, method: str, *, context: Context
    ) -> tuple[ServingError | None, grpc.StatusCode]:
        """What the caller is told of `error`, and what is counted; None: the caller is gone, and the error goes on."""
        if isinstance(error, ServingError):
            return error, error.status
        if isinstance(error, asyncio.CancelledError) and _caller_is_gone():
            return None, code_of_cancellation(context)
        if not isinstance(error, Exception | asyncio.CancelledError):
            return None, grpc.StatusCode.UNKNOWN
        # Let out, a CancelledError that is not the caller's would leave the caller without any answer.
        _LOGGER.error("%s failed", method, exc_info=error)
        return UnexpectedError(), UnexpectedError.status


async def refuse(context: Context, failure: ServingError) -> NoReturn:
    """End a call with `failure`. A caller that left in that very moment is told nothing, and no error is made of it.

    Raises:
        Exception: always; gRPC's own, by which it knows that the call has ended.
        asyncio.CancelledError: the caller is gone.
    """
    try:
        await context.abort(failure.status, str(failure), failure.trailers)
    except grpc.aio.InternalError as error:  # sending failed
        raise asyncio.CancelledError from error


def remaining_s(context: Context, timeout_us: int = 0) -> float | None:
    """Seconds until the answer is worthless: by the call's deadline or its own limit; None: it may take for ever."""
    call_s: float | None = context.time_remaining()  # the published type leaves out the None
    own_s = timeout_us * 1e-6 if timeout_us else None
    limits = [limit for limit in (call_s, own_s) if limit is not None]
    return min(limits, default=None)


def _caller_is_gone() -> bool:
    """Whether the current call's own task is being cancelled, as gRPC does when its caller hangs up or times out."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def code_of_cancellation(context: Context) -> grpc.StatusCode:
    """What the caller sees: gRPC cancels a call for its deadline as it does for a caller that hangs up."""
    left_s = remaining_s(context)
    timed_out = left_s is not None and left_s <= 0
    return grpc.StatusCode.DEADLINE_EXCEEDED if timed_out else grpc.StatusCode.CANCELLED
