"""One request for actions, from its arrival to its reply: what ModelInfer and ModelStreamInfer have in common."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np

from serving import codec
from serving.calls import Calls, Context, remaining_s
from serving.offers import Offer, Offers
from serving.open_inference import open_inference_pb2 as pb
from serving.open_inference import tensors
from serving.open_inference.tallies import Tallies, Tally
from serving.waiting import Answer, Call

Write: TypeAlias = Callable[[pb.ModelInferResponse], bytes]


class Arrival(NamedTuple):
    """A request, and when its bytes came."""

    request: pb.ModelInferRequest
    started_s: float


class Inferences:
    """Reads requests, brings them into the batcher, and keeps their tallies.

    Args:
        offers: the policies.
        calls: its clock is used.
        tallies: receives what became of each request.
        max_rows: most rows of one request.
    """

    def __init__(self, offers: Offers, *, calls: Calls, tallies: Tallies, max_rows: int) -> None:
        self.offers = offers
        self._clock = calls.clock
        self._tallies = tallies
        self._max_rows = max_rows

    def parse(self, raw: bytes) -> Arrival:
        """Read a ModelInferRequest.

        Raises:
            InvalidRequestError: the bytes are none.
        """
        started_s = self._clock()
        return Arrival(codec.parse(raw, pb.ModelInferRequest), started_s)

    def label(self, arrival: Arrival) -> str:
        """The policy that a request means, as a metric label."""
        return self.offers.label(arrival.request.model_name)

    def admit(self, arrival: Arrival, context: Context, *, write: Write) -> "Inference":
        """Bring a request into the batcher. Whoever loses interest must `withdraw` it.

        Args:
            write: serialises the reply.

        Raises:
            ServingError: it cannot be.
        """
        request, started_s = arrival
        offer = self.offers.find(request.model_name, version=request.model_version)
        tally = self._tallies.of(offer)
        try:
            priority, timeout_us = tensors.decode_scheduling(request)
            read_s = self._clock()
            rows = tensors.decode_rows(request, offer.bundle.spec, max_rows=self._max_rows)
            input_s = self._clock() - read_s
            call = offer.batcher.admit(rows, priority=priority, timeout_s=remaining_s(context, timeout_us))
        except BaseException:
            tally.failed(self._clock() - started_s)
            raise
        return Inference(offer, call, arrival, tally=tally, input_s=input_s, write=write, clock=self._clock)


@dataclasses.dataclass(frozen=True, slots=True)
class Inference:
    """A request whose answer is on its way."""

    offer: Offer
    call: Call
    arrival: Arrival
    _: dataclasses.KW_ONLY
    tally: Tally
    input_s: float  # reading its tensors took
    write: Write
    clock: Callable[[], float]

    async def reply(self) -> bytes:
        """Wait for the answer; the reply, serialised.

        Raises:
            ServingError: there is none.
        """
        try:
            answer = await self.call.answer
            computed_s = self.clock()
            reply = self.write(self._encode(answer.results))
        except BaseException:
            self.tally.failed(self.clock() - self.arrival.started_s)
            raise
        self._count(answer, output_s=self.clock() - computed_s)
        return reply

    def withdraw(self) -> None:
        """Nobody waits for the answer any more."""
        self.offer.batcher.withdraw(self.call)

    def _encode(self, actions: np.ndarray) -> pb.ModelInferResponse:
        name, version = self.offer.bundle.spec.name, self.offer.version
        return tensors.encode_reply(actions, policy=name, version=version, request=self.arrival.request)

    def _count(self, answer: Answer, *, output_s: float) -> None:
        self.tally.succeeded(
            self.clock() - self.arrival.started_s,
            input_s=self.input_s,
            queue_s=answer.queue_s,
            infer_s=answer.compute_s,
            output_s=output_s,
        )
