"""One stream of requests: its answers come in the same order, and several are under way at once.

A reader takes requests from the stream, admits each to the batcher, and puts it into a line of this stream's own; the
handler takes them from there, waits for each answer and sends it. That line is bounded, so a peer that does not read
its answers is soon not read from either, and gRPC's flow control stops it. Whatever ends the stream goes through the
same line, so every request that was read is answered first. If the peer leaves, its requests leave the batcher.
"""

import asyncio
from abc import ABC, abstractmethod
from typing import ClassVar, Generic, NamedTuple, Protocol, TypeVar

import grpc
import grpc.aio

from serving.api.handlers import SERVICE_NAME, Calls, Context, code_of_cancellation, refuse
from serving.errors import ServingError, UnavailableError
from serving.policies.registry import PolicyRegistry
from serving.telemetry.metrics import NO_POLICY, UNKNOWN_POLICY

Request = TypeVar("Request")
_UNDER_WAY = 64  # requests of one stream that are read and not yet answered


class Admitted(Protocol):
    """A request whose answer is on its way."""

    async def reply(self) -> bytes:
        """Wait for the answer; the reply, serialised.

        Raises:
            ServingError: there is none.
        """
        ...

    def withdraw(self) -> None:
        """Nobody waits for the answer any more."""
        ...


class _Tick(NamedTuple, Generic[Request]):
    """One request of the stream, and what becomes of it."""

    started_s: float
    policy: str  # as a metric label
    request: Request
    outcome: Admitted | ServingError


class OrderedStream(ABC, Generic[Request]):
    """Serves one stream, once; a subclass says what its messages mean.

    Args:
        policies: the policies.
        calls: counts outcomes, and knows when the server closes.
    """

    method: ClassVar[str]
    """As it is counted."""

    service: ClassVar[str] = SERVICE_NAME
    """That the method is of, for its span."""

    def __init__(self, context: Context, *, policies: PolicyRegistry, calls: Calls) -> None:
        self.context = context
        self.policies = policies
        self._calls = calls
        self._ticks: asyncio.Queue[_Tick[Request] | Exception | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(_UNDER_WAY)

    @abstractmethod
    def parse(self, raw: bytes) -> Request:
        """Read a request.

        Raises:
            InvalidRequestError: the bytes are none, so there is nothing to answer: the stream ends.
        """

    @abstractmethod
    def label(self, request: Request) -> str:
        """The policy that `request` means, as a metric label."""

    @abstractmethod
    def admit(self, request: Request) -> Admitted:
        """Bring `request` into the batcher.

        Raises:
            ServingError: it cannot be; the stream goes on.
        """

    @abstractmethod
    def refusal(self, request: Request, failure: ServingError) -> bytes:
        """The reply that takes the place of an answer, serialised."""

    async def run(self) -> None:
        """Serve, and tell the peer what ended the stream, if the peer did not."""
        tracing = self._calls.tracing
        span = tracing.begin(self.method, self.context, service=self.service) if tracing else None
        code = grpc.StatusCode.OK
        try:
            await self.serve()
        except BaseException as error:
            failure, code = self._calls.failure(error, self.method, context=self.context)
            if failure is None:
                raise
            await refuse(self.context, failure)
        finally:
            if span:
                span.end(NO_POLICY, code)  # its requests may name several

    async def serve(self) -> None:
        """Answer until the stream ends.

        Raises:
            Exception: what ends the stream, if the peer did not.
        """
        await self._calls.refuse_if_closing()
        self.policies.all()
        reader = asyncio.create_task(self._read())
        self._calls.watch(reader)
        tick: _Tick[Request] | Exception | None = None
        try:
            while isinstance(tick := await self._ticks.get(), _Tick):
                await self._answer(tick)
                self._room.release()
        finally:
            reader.cancel()
            _withdraw(tick)
            while not self._ticks.empty():
                self._abandon(self._ticks.get_nowait())
        if isinstance(tick, Exception):
            raise tick

    async def _read(self) -> None:
        """Admit requests until the peer has no more, sends what is none, or the server closes."""
        end: Exception | None = None
        try:
            await self._room.acquire()
            while (raw := await self.context.read()) is not grpc.aio.EOF:
                self._ticks.put_nowait(self._tick(raw))
                await self._room.acquire()
        except asyncio.CancelledError:
            if not self._calls.closing:
                raise
            end = UnavailableError("the server is shutting down; connect to another, or again in a moment")
        except Exception as error:  # the handler raises it; it would wait for ever for a reader that is gone
            end = error
        self._ticks.put_nowait(end)

    def _tick(self, raw: bytes) -> _Tick[Request]:
        """Bring one request into the batcher, or find out why not."""
        started_s = self._calls.clock()
        try:
            request = self.parse(raw)
        except ServingError as error:
            self._calls.count(self.method, UNKNOWN_POLICY, code=error.status, started_s=started_s)
            raise
        try:
            outcome = self.admit(request)
        except ServingError as error:
            outcome = error
        return _Tick(started_s, self.label(request), request, outcome)

    async def _answer(self, tick: _Tick[Request]) -> None:
        """Wait for the answer of `tick` and send it, or the reason why there is none."""
        code = grpc.StatusCode.OK
        try:
            if isinstance(tick.outcome, ServingError):
                raise tick.outcome
            reply = await tick.outcome.reply()
        except BaseException as error:
            failure, code = self._calls.failure(error, self.method, context=self.context)
            if failure is None:
                self._calls.count(self.method, tick.policy, code=code, started_s=tick.started_s)
                raise
            reply = self.refusal(tick.request, failure)
        self._calls.count(self.method, tick.policy, code=code, started_s=tick.started_s)
        await self.context.write(reply)

    def _abandon(self, tick: "_Tick[Request] | Exception | None") -> None:
        """The peer left before the turn of `tick` came."""
        _withdraw(tick)
        if isinstance(tick, _Tick):
            self._calls.count(
                self.method, tick.policy, code=code_of_cancellation(self.context), started_s=tick.started_s
            )


def _withdraw(tick: object) -> None:
    """Nobody waits for `tick` any more, if it is one."""
    if isinstance(tick, _Tick) and not isinstance(tick.outcome, ServingError):
        tick.outcome.withdraw()
