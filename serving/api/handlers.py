"""RpcHandlers: makes the methods that a transport serves: parsing, metrics, spans, error handling and shutdown.

A method gets bytes and parses them itself, so that malformed bytes get our own status and message. Each call is counted
by its outcome. A method raises only a `ServingError`, or passes on the cancellation of a caller that is gone.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message

from serving.api.rpc import RpcContext, UnaryMethod
from serving.errors import (
    DrainingError,
    InvalidRequestError,
    OverloadedError,
    Reason,
    ServingError,
    Status,
    UnexpectedError,
)
from serving.telemetry.metrics import UNKNOWN_POLICY, UNREAD_POLICY, Metrics

if TYPE_CHECKING:
    from serving.api.tracing import Tracing
    from serving.batching.queue import QueuedRequest  # it imports JAX, and the supervisor uses `parse`

_LOGGER = logging.getLogger(__name__)

Request = TypeVar("Request")
RequestMessage = TypeVar("RequestMessage", bound=Message)


class PendingReply(Protocol):
    """A request in the batcher that can wait for its reply."""

    @property
    def queued(self) -> "QueuedRequest":
        """The request in the batcher's queue."""
        ...

    async def reply(self) -> bytes:
        """Wait for the results and return the serialized reply.

        Raises:
            ServingError: the request has failed.
        """
        ...

    def withdraw(self) -> None:
        """Take the request out of the batcher. No effect once it is completed."""
        ...


class InferenceMethod(Protocol[Request]):
    """A kind of request that is computed in batches."""

    def parse(self, raw: bytes, /) -> Request:
        """Read a request.

        Raises:
            InvalidRequestError: `raw` is not a request of this kind.
        """
        ...

    def label(self, request: Request, /) -> str:
        """Return the policy that `request` names, as a metric label."""
        ...

    def admit(self, request: Request, /, context: RpcContext) -> PendingReply:
        """Put `request` into the batcher of its policy. The caller must withdraw it if it does not wait for the reply.

        Raises:
            ServingError: the request is refused.
        """
        ...


class RpcHandlers:
    """Makes methods for a transport. While the server shuts down, new calls are held.

    Args:
        metrics: receives the outcome of every call.
        tracing: makes a span of every call; None: no spans.
        clock: monotonic seconds, the clock of every `RpcContext`.
    """

    def __init__(
        self, metrics: Metrics, *, tracing: "Tracing | None" = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._metrics = metrics
        self.tracing = tracing
        self.clock = clock
        self.draining = False
        self._refusing = asyncio.Event()
        self._readers: set[asyncio.Task[None]] = set()

    def unary(
        self,
        name: str,
        *,
        parse: Callable[[bytes], Request],
        label: Callable[[Request], str],
        answer: Callable[[Request, RpcContext], Awaitable[bytes]],
    ) -> UnaryMethod:
        """Make a method of one request and one reply.

        Args:
            name: of the method, for metrics.
            parse: reads a request; may raise a ServingError.
            label: the policy that a request names, as a metric label.
            answer: makes the serialized reply.
        """

        async def method(raw: bytes, context: RpcContext) -> bytes:
            started_s, status = self.clock(), Status.OK
            span = self.tracing.begin(context) if self.tracing else None
            policy = UNKNOWN_POLICY
            try:
                request = parse(raw)
                policy = label(request)
                if self.draining:
                    await self.hold()
                answering = answer(request, context)
                del request  # it may be large, and the answer keeps what it needs
                reply = await answering
                context.hold_reply(len(reply))
                return reply
            except BaseException as error:
                failure, status = self.failure(error, context)
                if failure is None or failure is error:
                    raise
                raise failure from error
            finally:
                self.count(name, policy, status=status, started_s=started_s)
                if span:
                    span.end(policy, status)

        return method

    def inference(self, name: str, requests: InferenceMethod[Request]) -> UnaryMethod:
        """Make a method of one request, computed in a batch, and one reply. `name` is for metrics."""

        async def answer(request: Request, context: RpcContext) -> bytes:
            pending = requests.admit(request, context)
            del request
            try:
                reply = await pending.reply()
            finally:
                pending.withdraw()  # has an effect only if the caller is gone
            if self.tracing:
                self.tracing.computed(pending.queued.result.result())
            return reply

        return self.unary(name, parse=requests.parse, label=requests.label, answer=answer)

    def count(self, name: str, policy: str, *, status: Status, started_s: float) -> None:
        """Count the outcome of one call, or of one request of a stream."""
        self._metrics.observe_request(name, policy, code=status.name, total_s=self.clock() - started_s)

    def count_unread(self, reason: Reason, context: RpcContext) -> None:
        """Count a call that is rejected for `reason` before it is read, and make its span."""
        status = OverloadedError.status
        self._metrics.count_rejected_unread(reason)
        self.count(context.method.rpartition("/")[2], UNREAD_POLICY, status=status, started_s=self.clock())
        if self.tracing:
            self.tracing.begin(context).end(UNREAD_POLICY, status)

    def failure(self, error: BaseException, context: RpcContext) -> tuple[ServingError | None, Status]:
        """Return the error to send and the status to count. No error: the caller is gone, so raise `error` again."""
        if isinstance(error, ServingError):
            return error, error.status
        if isinstance(error, GeneratorExit) or (isinstance(error, asyncio.CancelledError) and _caller_is_gone()):
            return None, self.status_of_cancellation(context)
        if not isinstance(error, Exception | asyncio.CancelledError):
            return None, Status.UNKNOWN
        # The transport did not cause this CancelledError. Passed on, it would leave the caller without an answer.
        _LOGGER.error("%s failed", context.method, exc_info=error)
        return UnexpectedError(), UnexpectedError.status

    def status_of_cancellation(self, context: RpcContext) -> Status:
        """Return the status of a call that the transport cancelled: its deadline has passed, or its caller hung up."""
        return Status.DEADLINE_EXCEEDED if self.clock() >= context.deadline_s else Status.CANCELLED

    def begin_draining(self) -> None:
        """From now on, hold new calls without an answer, and read no more requests from streams.

        A caller whose call is refused immediately may retry on the same connection. While gRPC shuts down, it silently
        cancels calls that it has not passed to a method yet, and such a retry could be one of them. A caller whose call
        is held does not retry. `refuse_held` refuses the held calls.
        """
        self.draining = True
        for reader in self._readers:
            reader.cancel()

    def refuse_held(self) -> None:
        """Refuse the held calls. Call it when the transport has begun to close the connections."""
        self._refusing.set()

    async def hold(self) -> None:
        """Hold a call that arrived after `begin_draining`.

        Raises:
            DrainingError: always, after `refuse_held`.
        """
        await self._refusing.wait()
        raise DrainingError

    def cancel_when_draining(self, reader: "asyncio.Task[None]") -> None:
        """Cancel `reader`, which receives the requests of a stream, at `begin_draining`."""
        self._readers.add(reader)
        reader.add_done_callback(self._readers.discard)


def parse(raw: bytes, request_type: type[RequestMessage]) -> RequestMessage:
    """Read a message.

    Raises:
        InvalidRequestError: `raw` is not a `request_type` message.
    """
    try:
        return request_type.FromString(raw)
    except DecodeError as error:
        name = request_type.DESCRIPTOR.full_name
        raise InvalidRequestError(f"the {len(raw)} bytes of the request are not a {name} message") from error


def parse_blocks(raw: bytes, blocks_type: type[RequestMessage], public_type: type[Message]) -> RequestMessage:
    """Read a `public_type` message as `blocks_type`, which has its row blocks as bytes, without a loop over values.

    A packed `repeated float` has the same bytes as a `bytes` field. A sender may also encode it in pieces or value by
    value. Then `blocks_type` holds only a part of the message and is smaller than `raw`. Such a message is read as
    `public_type` instead, which is slow.

    Raises:
        InvalidRequestError: `raw` is not a `public_type` message.
    """
    try:
        request = blocks_type.FromString(raw)
        request.DiscardUnknownFields()
        if request.ByteSize() == len(raw):
            return request
    except DecodeError:
        pass  # `parse` fails too, and names the public message
    fields: dict[str, Any] = {}
    for field, value in parse(raw, public_type).ListFields():
        fields[field.name] = np.asarray(value, "<f4").tobytes() if field.is_repeated else value
    return blocks_type(**fields)


def _caller_is_gone() -> bool:
    """Return whether the current task is being cancelled: the caller hung up, or its deadline passed."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
