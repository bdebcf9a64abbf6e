"""One stream of requests: several are computed at a time, and the replies come in the order of the requests.

A reader task receives requests, admits each to its batcher, and appends it to the stream's own queue. The method takes
them from that queue in order, waits for each reply, and gives it to the transport. At most `_MAX_PENDING` requests of a
stream are admitted and not answered: then the reader waits, and flow control stops the peer. Whatever ends the stream
goes through the same queue, so every request that was received is answered first. If the peer leaves, its requests
leave the batcher.

The queue is a deque with a signal, because asyncio.Queue and asyncio.Semaphore take microseconds for each request.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from serving.api.handlers import InferenceMethod, PendingReply, RpcHandlers
from serving.api.rpc import RpcContext, StreamMethod
from serving.errors import DrainingError, ServingError, Status
from serving.policies.registry import PolicyRegistry
from serving.telemetry.metrics import NO_POLICY, UNKNOWN_POLICY

Request = TypeVar("Request")
_MAX_PENDING = 64  # requests of one stream


class StreamedMethod(InferenceMethod[Request], Protocol[Request]):
    """A kind of request that is computed in batches, and that a stream can carry."""

    def tag(self, request: Request, /) -> Any:
        """Return what a reply repeats of its request: its sequence, or its id."""
        ...

    def refusal(self, tag: Any, /, failure: ServingError) -> bytes:
        """Return the serialized reply to a request that has failed or is refused."""
        ...


class _Signal:
    """Wakes the one task that waits for it. Setting it while no task waits has no effect."""

    def __init__(self) -> None:
        self._waiter: asyncio.Future[None] | None = None

    async def wait(self) -> None:
        """Wait until `set` is called."""
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def set(self) -> None:
        """Wake the task."""
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)


class _StreamedRequest(NamedTuple):
    """One request of the stream, without its rows, and its outcome so far."""

    started_s: float
    policy: str  # as a metric label
    tag: Any
    outcome: PendingReply | ServingError


def ordered_stream(
    name: str, requests: StreamedMethod[Request], *, handlers: RpcHandlers, policies: PolicyRegistry
) -> StreamMethod:
    """Make a method of a stream of requests and their replies.

    Args:
        name: of the method, for metrics.
        requests: what its requests mean.
        handlers: count outcomes, and say whether the server shuts down.
        policies: a stream is refused until policies are served.
    """

    def method(raw_requests: AsyncIterator[bytes], context: RpcContext) -> AsyncGenerator[bytes]:
        return _OrderedStream(name, requests, context, handlers=handlers).replies(raw_requests, policies)

    return method


class _OrderedStream(Generic[Request]):
    """One open stream."""

    def __init__(
        self, name: str, requests: StreamedMethod[Request], context: RpcContext, *, handlers: RpcHandlers
    ) -> None:
        self._name = name
        self._requests = requests
        self._context = context
        self._handlers = handlers
        self._received: deque[_StreamedRequest | Exception | None] = deque()
        self._arrival = _Signal()  # set when one is appended
        self._pending = 0  # requests that are admitted, and whose replies are not yet sent
        self._room = _Signal()  # set when `_pending` falls

    async def replies(self, raw_requests: AsyncIterator[bytes], policies: PolicyRegistry) -> AsyncGenerator[bytes]:
        """Yield the replies. Then raise the error that ended the stream, unless the peer ended it.

        Raises:
            ServingError: a request was not a message, the server drains or is not ready, or there is a bug.
        """
        handlers, tracing = self._handlers, self._handlers.tracing
        span = tracing.begin(self._context) if tracing else None
        status, reader = Status.OK, None
        received: _StreamedRequest | Exception | None = None
        try:
            if handlers.draining:
                await handlers.hold()
            policies.live()
            reader = asyncio.create_task(self._receive(raw_requests))
            reader.add_done_callback(self._end)
            handlers.cancel_when_draining(reader)
            while True:
                while not self._received:
                    await self._arrival.wait()
                received = self._received.popleft()
                if not isinstance(received, _StreamedRequest):
                    break
                yield await self._reply(received)
                self._pending -= 1
                self._room.set()
            if received is not None:
                raise received
        except BaseException as error:
            failure, status = handlers.failure(error, self._context)
            if failure is None or failure is error:
                raise
            raise failure from error
        finally:
            if reader:
                reader.cancel()
            _withdraw(received)
            self._abandon_rest()
            if span:
                span.end(NO_POLICY, status)  # its requests may name several policies

    async def _receive(self, raw_requests: AsyncIterator[bytes]) -> None:
        """Admit requests until the peer ends the stream, sends bytes that are not a request, or the server drains."""
        async for raw in raw_requests:
            self._received.append(self._admit(raw))
            del raw  # while there is no room, it would only take memory
            self._arrival.set()
            self._pending += 1
            while self._pending >= _MAX_PENDING:
                await self._room.wait()

    def _end(self, reader: "asyncio.Task[None]") -> None:
        """Put the end of the requests into the queue. A callback, since `reader` may be cancelled before it starts."""
        if not reader.cancelled():
            error = reader.exception()
            assert error is None or isinstance(error, Exception)
            self._received.append(error)
        elif self._handlers.draining:
            self._received.append(DrainingError())
        self._arrival.set()

    def _admit(self, raw: bytes) -> _StreamedRequest:
        """Put one request into its batcher. If it is refused, its outcome is the error.

        Raises:
            InvalidRequestError: `raw` is not a request, so there is nothing to reply to.
        """
        started_s = self._handlers.clock()
        try:
            request = self._requests.parse(raw)
        except ServingError as error:
            self._handlers.count(self._name, UNKNOWN_POLICY, status=error.status, started_s=started_s)
            raise
        outcome: PendingReply | ServingError
        try:
            self._context.count_message()
            outcome = self._requests.admit(request, self._context)
        except ServingError as error:
            outcome = error.with_traceback(None)  # its frames hold the rows
        return _StreamedRequest(started_s, self._requests.label(request), self._requests.tag(request), outcome)

    async def _reply(self, received: _StreamedRequest) -> bytes:
        """Wait for the reply to one request; a refusal is a reply too. Counts its outcome."""
        status = Status.OK
        outcome = received.outcome
        if isinstance(outcome, ServingError):
            reply, status = self._requests.refusal(received.tag, outcome), outcome.status
        else:
            try:
                reply = await outcome.reply()
            except BaseException as error:
                failure, status = self._handlers.failure(error, self._context)
                if failure is None:
                    self._count(received, status)
                    raise
                error.__traceback__ = None  # its frames hold the request
                reply = self._requests.refusal(received.tag, failure)
        self._count(received, status)
        return reply

    def _abandon_rest(self) -> None:
        """The peer left: withdraw and count the requests that have no reply yet."""
        while self._received:
            received = self._received.popleft()
            _withdraw(received)
            if isinstance(received, _StreamedRequest):
                self._count(received, self._handlers.status_of_cancellation(self._context))

    def _count(self, received: _StreamedRequest, status: Status) -> None:
        self._handlers.count(self._name, received.policy, status=status, started_s=received.started_s)


def _withdraw(received: "_StreamedRequest | Exception | None") -> None:
    """Withdraw `received` from its batcher, if it is a request that was admitted."""
    if isinstance(received, _StreamedRequest) and not isinstance(received.outcome, ServingError):
        received.outcome.withdraw()
