"""One ActStream: requests in, answers out in the same order, several under way at once.

A reader takes requests from the stream, admits each to the batcher, and puts it into a line of this stream's own; the
handler takes them from there, waits for each answer and sends it. That line is bounded, so a peer that does not read
its answers is soon not read from either, and gRPC's flow control stops it. Whatever ends the stream goes through the
same line, so every request that was read is answered first. If the peer leaves, its requests leave the batcher.
"""

import asyncio
from typing import Any, NamedTuple

import grpc
import grpc.aio

from kilolayer.v1.blocks_pb2 import ActRequestBlocks, ActResponseBlocks
from kilolayer.v1.policy_pb2 import Failure
from serving import codec
from serving.calls import Calls, Context, remaining_s
from serving.errors import ServingError, UnavailableError
from serving.metrics import UNKNOWN_POLICY
from serving.offers import Offer, Offers
from serving.waiting import Answer, Call

METHOD = "ActStream"
_UNDER_WAY = 64  # requests of one stream that are read and not yet answered


class _Admitted(NamedTuple):
    """A request whose answer is on its way."""

    offer: Offer
    work: codec.Work
    call: Call


class _Tick(NamedTuple):
    """One request of the stream, and what becomes of it."""

    started_s: float
    policy: str  # as a metric label
    sequence: int
    outcome: _Admitted | ServingError


class ActStream:
    """Serves one stream, once.

    Args:
        offers: the policies.
        calls: counts outcomes, and knows when the server closes.
        max_rows: most rows of one request.
    """

    def __init__(self, context: Context, *, offers: Offers, calls: Calls, max_rows: int) -> None:
        self._context = context
        self._offers = offers
        self._calls = calls
        self._max_rows = max_rows
        self._ticks: asyncio.Queue[_Tick | Exception | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(_UNDER_WAY)

    async def serve(self) -> None:
        """Answer until the stream ends.

        Raises:
            Exception: what ends the stream, if the peer did not.
        """
        await self._calls.refuse_if_closing()
        self._offers.all()
        reader = asyncio.create_task(self._read())
        self._calls.watch(reader)
        tick: _Tick | Exception | None = None
        try:
            while isinstance(tick := await self._ticks.get(), _Tick):
                await self._answer(tick)
                self._room.release()
        finally:
            reader.cancel()
            self._withdraw(tick)
            while not self._ticks.empty():
                self._withdraw(self._ticks.get_nowait())
        if isinstance(tick, Exception):
            raise tick

    async def _read(self) -> None:
        """Admit requests until the peer has no more, sends what is none, or the server closes."""
        end: Exception | None = None
        try:
            await self._room.acquire()
            while (raw := await self._context.read()) is not grpc.aio.EOF:
                self._ticks.put_nowait(self._admit(raw))
                await self._room.acquire()
        except asyncio.CancelledError:
            if not self._calls.closing:
                raise
            end = UnavailableError("the server is shutting down; connect to another, or again in a moment")
        except Exception as error:  # the handler raises it; it would wait for ever for a reader that is gone
            end = error
        self._ticks.put_nowait(end)

    def _admit(self, raw: bytes) -> _Tick:
        """Bring one request into the batcher, or find out why not.

        Raises:
            InvalidRequestError: the bytes are no request, so there is no sequence to answer with.
        """
        started_s = self._calls.clock()
        try:
            request = codec.parse_act(raw)
        except ServingError as error:
            self._calls.count(METHOD, UNKNOWN_POLICY, code=error.status, started_s=started_s)
            raise
        try:
            outcome = self._admit_request(request)
        except ServingError as error:
            outcome = error
        return _Tick(started_s, self._offers.label(request.policy), sequence=request.sequence, outcome=outcome)

    def _admit_request(self, request: ActRequestBlocks) -> _Admitted:
        offer = self._offers.find(request.policy, version=request.version)
        work = codec.decode_act(request, offer.bundle.spec, max_rows=self._max_rows)
        timeout_s = remaining_s(self._context, request.timeout_us)
        call = offer.batcher.admit(work.rows, kind=work.kind, priority=request.priority, timeout_s=timeout_s)
        return _Admitted(offer, work, call)

    async def _answer(self, tick: _Tick) -> None:
        """Wait for the answer of `tick` and send it, or the reason why there is none."""
        code = grpc.StatusCode.OK
        try:
            if isinstance(tick.outcome, ServingError):
                raise tick.outcome
            offer, work, call = tick.outcome
            reply = encode_actions(offer, work, await call.answer, sequence=tick.sequence)
        except BaseException as error:
            failure, code = self._calls.failure(error, METHOD, context=self._context)
            if failure is None:
                self._calls.count(METHOD, tick.policy, code=code, started_s=tick.started_s)
                raise
            reply = ActResponseBlocks(
                sequence=tick.sequence, failure=Failure(code=code.value[0], message=str(failure))
            ).SerializeToString()
        self._calls.count(METHOD, tick.policy, code=code, started_s=tick.started_s)
        await self._context.write(reply)

    def _withdraw(self, tick: _Tick | Exception | None) -> None:
        """Nobody waits for `tick` any more."""
        if isinstance(tick, _Tick) and isinstance(tick.outcome, _Admitted):
            tick.outcome.offer.batcher.withdraw(tick.outcome.call)


def encode_actions(offer: Offer, work: codec.Work, answer: Answer, *, sequence: int) -> bytes:
    """The reply to one Act."""
    action = codec.to_bytes(codec.actions(answer, work))
    return ActResponseBlocks(action=action, **reply_fields(offer, answer, sequence=sequence)).SerializeToString()


def reply_fields(offer: Offer, answer: Answer, *, sequence: int) -> dict[str, Any]:
    """What every reply says besides its results."""
    return {
        "policy": offer.bundle.spec.name,
        "version": offer.version,
        "sequence": sequence,
        "queue_us": round(answer.queue_s * 1e6),
        "compute_us": round(answer.compute_s * 1e6),
        "batch_rows": answer.batch_rows,
    }
