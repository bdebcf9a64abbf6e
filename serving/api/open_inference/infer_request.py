"""InferRequests: requests of ModelInfer and ModelStreamInfer, from their bytes to the bytes of their replies."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np

from serving.api.handlers import parse
from serving.api.observers import Observation, Observers
from serving.api.open_inference import open_inference_pb2 as pb
from serving.api.open_inference import tensors
from serving.api.open_inference.statistics import StatisticsByVersion, VersionStatistics
from serving.api.range_check import RangeCheck
from serving.api.rpc import RpcContext
from serving.batching.queue import InferenceResult, QueuedRequest
from serving.engine.engine import Kind
from serving.errors import ServingError
from serving.policies.registry import PolicyRegistry, ServedPolicy

Read: TypeAlias = Callable[[bytes], pb.ModelInferRequest]
Serialize: TypeAlias = Callable[[pb.ModelInferResponse], bytes]


def read_message(raw: bytes) -> pb.ModelInferRequest:
    """Read a ModelInferRequest. Raises InvalidRequestError if `raw` is not a ModelInferRequest."""
    return parse(raw, pb.ModelInferRequest)


class ReceivedRequest(NamedTuple):
    """A request, and when its bytes arrived."""

    request: pb.ModelInferRequest
    started_s: float


class InferRequests:
    """Reads requests, puts them into the batcher of their policy, and keeps statistics of them.

    Args:
        policies: the policies that are served.
        statistics: receives the outcome of each request.
        max_rows: most rows of one request.
        clock: monotonic seconds.
        serialize: makes the bytes of a reply.
        observers: get the requests that are answered.
        range_check: finds states far from those of training; None: no state is.
        read: reads the bytes of a request; may raise a ServingError.
    """

    def __init__(
        self,
        policies: PolicyRegistry,
        *,
        statistics: StatisticsByVersion,
        max_rows: int,
        clock: Callable[[], float],
        serialize: Serialize,
        observers: Observers,
        range_check: RangeCheck | None = None,
        read: Read = read_message,
    ) -> None:
        self._policies = policies
        self._statistics = statistics
        self._max_rows = max_rows
        self._clock = clock
        self._serialize = serialize
        self._range_check = range_check
        self._observers = observers
        self._read = read

    def parse(self, raw: bytes) -> ReceivedRequest:
        """Read a request. Raises InvalidRequestError if `raw` is not a request."""
        started_s = self._clock()
        return ReceivedRequest(self._read(raw), started_s)

    def label(self, received: ReceivedRequest) -> str:
        """Return the policy that a request names, as a metric label."""
        return self._policies.label(received.request.model_name)

    def admit(self, received: ReceivedRequest, context: RpcContext) -> "PendingInference":
        """Put a request into the batcher. The caller must `withdraw` it if it does not wait for the reply.

        Raises:
            ServingError: the request is refused.
        """
        request, started_s = received
        robot_id = tensors.decode_robot_id(request)
        robot = robot_id or context.caller
        served = self._policies.find(request.model_name, version=request.model_version, robot=robot)
        spec, statistics = served.bundle.spec, self._statistics.of(served)
        try:
            priority, limit_us = tensors.decode_scheduling(request)
            read_s = self._clock()
            rows = tensors.decode_rows(request, spec, max_rows=self._max_rows)
            is_out_of_range = self._range_check is not None and self._range_check.is_out_of_range(
                served, rows[:, : spec.state_dim]
            )
            decoded_s = self._clock()
            timeout_s = context.timeout_s(decoded_s, limit_us=limit_us)
            queued = served.batcher.admit(rows, priority=priority, timeout_s=timeout_s, connection=context.connection)
        except BaseException:
            statistics.failed(self._clock() - started_s)
            raise
        if self._range_check and is_out_of_range:
            self._range_check.count(served)
        return PendingInference(
            served,
            queued,
            request.id,
            started_s,
            is_out_of_range=is_out_of_range,
            observation=self._observers.admitted(served, rows, kind=Kind.ACT, robot_id=robot_id),
            statistics=statistics,
            input_s=decoded_s - read_s,
            serialize=self._serialize,
            clock=self._clock,
        )

    def tag(self, received: ReceivedRequest) -> str:
        """Return the id of a request, which its reply repeats."""
        return received.request.id

    def refusal(self, tag: str, failure: ServingError) -> bytes:
        """Return the reply of a stream to the failed request of id `tag`: the error's text, the id, and the reason."""
        reason = pb.InferParameter(string_param=failure.reason)
        about = pb.ModelInferResponse(id=tag, parameters={"kilolayer-reason": reason})
        return pb.ModelStreamInferResponse(error_message=str(failure), infer_response=about).SerializeToString()


@dataclasses.dataclass(frozen=True, slots=True)
class PendingInference:
    """A request in the batcher."""

    served: ServedPolicy
    queued: QueuedRequest
    request_id: str
    started_s: float  # when its bytes arrived
    _: dataclasses.KW_ONLY
    is_out_of_range: bool  # whether a state is far from those of training
    observation: Observation | None  # what else happens once the request is answered
    statistics: VersionStatistics
    input_s: float  # seconds that decoding its tensors took
    serialize: Serialize
    clock: Callable[[], float]

    async def reply(self) -> bytes:
        """Wait for the actions and return the serialized reply.

        Raises:
            ServingError: the request has failed.
        """
        try:
            result = await self.queued.result
            computed_s = self.clock()
            if self.observation:
                self.observation.answered(result.results)
            reply = self.serialize(self._encode(result.results))
        except BaseException:
            self.statistics.failed(self.clock() - self.started_s)
            raise
        self._count(result, output_s=self.clock() - computed_s)
        return reply

    def withdraw(self) -> None:
        """Take the request out of the batcher. No effect once it is completed."""
        self.served.batcher.withdraw(self.queued)

    def _encode(self, actions: np.ndarray) -> pb.ModelInferResponse:
        """Return the reply with `actions: [rows, chunk_dim]`, always as raw bytes."""
        shape = actions.shape
        output = pb.ModelInferResponse.InferOutputTensor(name=tensors.OUTPUT, datatype=tensors.DATATYPE, shape=shape)
        parameters = {"kilolayer-out-of-range": pb.InferParameter(bool_param=True)} if self.is_out_of_range else {}
        return pb.ModelInferResponse(
            parameters=parameters,
            model_name=self.served.name,
            model_version=self.served.version,
            id=self.request_id,
            outputs=[output],
            raw_output_contents=[actions.tobytes()],
        )

    def _count(self, result: InferenceResult, *, output_s: float) -> None:
        self.statistics.succeeded(
            self.clock() - self.started_s,
            input_s=self.input_s,
            queue_s=result.queue_s,
            infer_s=result.compute_s,
            output_s=output_s,
        )
