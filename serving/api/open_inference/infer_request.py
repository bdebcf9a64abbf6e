"""One request for actions, from its arrival to its reply: what ModelInfer and ModelStreamInfer have in common."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np

from serving.api import codec
from serving.api.handlers import Calls, Context, remaining_s
from serving.api.open_inference import open_inference_pb2 as pb
from serving.api.open_inference import tensors
from serving.api.open_inference.statistics import StatisticsByVersion, VersionStatistics
from serving.batching.queue import InferenceResult, QueuedRequest
from serving.policies.registry import PolicyRegistry, ServedPolicy

Write: TypeAlias = Callable[[pb.ModelInferResponse], bytes]


class ReceivedRequest(NamedTuple):
    """A request, and when its bytes came."""

    request: pb.ModelInferRequest
    started_s: float


class InferRequests:
    """Reads requests, brings them into the batcher, and keeps their tallies.

    Args:
        policies: the policies.
        calls: its clock is used.
        tallies: receives what became of each request.
        max_rows: most rows of one request.
    """

    def __init__(self, policies: PolicyRegistry, *, calls: Calls, tallies: StatisticsByVersion, max_rows: int) -> None:
        self.policies = policies
        self._clock = calls.clock
        self._tallies = tallies
        self._max_rows = max_rows

    def parse(self, raw: bytes) -> ReceivedRequest:
        """Read a ModelInferRequest.

        Raises:
            InvalidRequestError: the bytes are none.
        """
        started_s = self._clock()
        return ReceivedRequest(codec.parse(raw, pb.ModelInferRequest), started_s)

    def label(self, arrival: ReceivedRequest) -> str:
        """The policy that a request means, as a metric label."""
        return self.policies.label(arrival.request.model_name)

    def admit(self, arrival: ReceivedRequest, context: Context, *, write: Write) -> "PendingInference":
        """Bring a request into the batcher. Whoever loses interest must `withdraw` it.

        Args:
            write: serialises the reply.

        Raises:
            ServingError: it cannot be.
        """
        request, started_s = arrival
        served = self.policies.find(request.model_name, version=request.model_version)
        tally = self._tallies.of(served)
        try:
            priority, timeout_us = tensors.decode_scheduling(request)
            read_s = self._clock()
            rows = tensors.decode_rows(request, served.bundle.spec, max_rows=self._max_rows)
            input_s = self._clock() - read_s
            call = served.batcher.admit(rows, priority=priority, timeout_s=remaining_s(context, timeout_us))
        except BaseException:
            tally.failed(self._clock() - started_s)
            raise
        return PendingInference(served, call, arrival, tally=tally, input_s=input_s, write=write, clock=self._clock)


@dataclasses.dataclass(frozen=True, slots=True)
class PendingInference:
    """A request whose answer is on its way."""

    served: ServedPolicy
    call: QueuedRequest
    arrival: ReceivedRequest
    _: dataclasses.KW_ONLY
    tally: VersionStatistics
    input_s: float  # reading its tensors took
    write: Write
    clock: Callable[[], float]

    async def reply(self) -> bytes:
        """Wait for the answer; the reply, serialised.

        Raises:
            ServingError: there is none.
        """
        try:
            answer = await self.call.result
            computed_s = self.clock()
            reply = self.write(self._encode(answer.results))
        except BaseException:
            self.tally.failed(self.clock() - self.arrival.started_s)
            raise
        self._count(answer, output_s=self.clock() - computed_s)
        return reply

    def withdraw(self) -> None:
        """Nobody waits for the answer any more."""
        self.served.batcher.withdraw(self.call)

    def _encode(self, actions: np.ndarray) -> pb.ModelInferResponse:
        name, version = self.served.bundle.spec.name, self.served.version
        return tensors.encode_reply(actions, policy=name, version=version, request=self.arrival.request)

    def _count(self, answer: InferenceResult, *, output_s: float) -> None:
        self.tally.succeeded(
            self.clock() - self.arrival.started_s,
            input_s=self.input_s,
            queue_s=answer.queue_s,
            infer_s=answer.compute_s,
            output_s=output_s,
        )
