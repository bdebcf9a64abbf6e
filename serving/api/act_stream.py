"""The messages of one ActStream; `serving.api.ordered_stream` answers them in order."""

from typing import Any, NamedTuple

from kilolayer._internal.blocks_pb2 import ActRequestBlocks, ActResponseBlocks
from kilolayer.v1.policy_pb2 import Failure
from serving.api import codec
from serving.api.handlers import Calls, Context, remaining_s
from serving.api.ordered_stream import OrderedStream
from serving.batching.queue import InferenceResult, QueuedRequest
from serving.errors import ServingError
from serving.policies.registry import PolicyRegistry, ServedPolicy

METHOD = "ActStream"


class ActStream(OrderedStream[ActRequestBlocks]):
    """Serves one stream, once.

    Args:
        policies: the policies.
        calls: counts outcomes, and knows when the server closes.
        max_rows: most rows of one request.
    """

    method = METHOD

    def __init__(self, context: Context, *, policies: PolicyRegistry, calls: Calls, max_rows: int) -> None:
        super().__init__(context, policies=policies, calls=calls)
        self._max_rows = max_rows

    def parse(self, raw: bytes) -> ActRequestBlocks:
        """Read an ActRequest."""
        return codec.parse_act(raw)

    def label(self, request: ActRequestBlocks) -> str:
        """The policy that `request` means, as a metric label."""
        return self.policies.label(request.policy)

    def admit(self, request: ActRequestBlocks) -> "_PendingAct":
        """Bring `request` into the batcher. Raises as `OrderedStream.admit`."""
        served = self.policies.find(request.policy, version=request.version)
        work = codec.decode_act(request, served.bundle.spec, max_rows=self._max_rows)
        timeout_s = remaining_s(self.context, request.timeout_us)
        call = served.batcher.admit(work.rows, kind=work.kind, priority=request.priority, timeout_s=timeout_s)
        return _PendingAct(served, work, call, sequence=request.sequence)

    def refusal(self, request: ActRequestBlocks, failure: ServingError) -> bytes:
        """A reply without actions, with the reason why."""
        status: int = failure.status.value[0]
        reason = Failure(code=status, message=str(failure))
        return ActResponseBlocks(sequence=request.sequence, failure=reason).SerializeToString()


class _PendingAct(NamedTuple):
    """A request whose answer is on its way."""

    served: ServedPolicy
    work: codec.ComputeRequest
    call: QueuedRequest
    sequence: int

    async def reply(self) -> bytes:
        return encode_actions(self.served, self.work, await self.call.result, sequence=self.sequence)

    def withdraw(self) -> None:
        self.served.batcher.withdraw(self.call)


def encode_actions(
    served: ServedPolicy, work: codec.ComputeRequest, answer: InferenceResult, *, sequence: int
) -> bytes:
    """The reply to one Act."""
    action = codec.to_bytes(codec.actions(answer, work))
    return ActResponseBlocks(action=action, **reply_fields(served, answer, sequence=sequence)).SerializeToString()


def reply_fields(served: ServedPolicy, answer: InferenceResult, *, sequence: int) -> dict[str, Any]:
    """What every reply says besides its results."""
    return {
        "policy": served.bundle.spec.name,
        "version": served.version,
        "sequence": sequence,
        "queue_us": round(answer.queue_s * 1e6),
        "compute_us": round(answer.compute_s * 1e6),
        "batch_rows": answer.batch_rows,
    }
