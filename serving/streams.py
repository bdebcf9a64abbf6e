"""One ActStream: what its messages mean. `serving.ordered` says how requests become answers in the same order."""

from typing import Any, NamedTuple

from kilolayer._internal.blocks_pb2 import ActRequestBlocks, ActResponseBlocks
from kilolayer.v1.policy_pb2 import Failure
from serving import codec
from serving.calls import Calls, Context, remaining_s
from serving.errors import ServingError
from serving.offers import Offer, Offers
from serving.ordered import OrderedStream
from serving.waiting import Answer, Call

METHOD = "ActStream"


class ActStream(OrderedStream[ActRequestBlocks]):
    """Serves one stream, once.

    Args:
        offers: the policies.
        calls: counts outcomes, and knows when the server closes.
        max_rows: most rows of one request.
    """

    method = METHOD

    def __init__(self, context: Context, *, offers: Offers, calls: Calls, max_rows: int) -> None:
        super().__init__(context, offers=offers, calls=calls)
        self._max_rows = max_rows

    def parse(self, raw: bytes) -> ActRequestBlocks:
        """Read an ActRequest."""
        return codec.parse_act(raw)

    def label(self, request: ActRequestBlocks) -> str:
        """The policy that `request` means, as a metric label."""
        return self.offers.label(request.policy)

    def admit(self, request: ActRequestBlocks) -> "_Act":
        """Bring `request` into the batcher. Raises as `OrderedStream.admit`."""
        offer = self.offers.find(request.policy, version=request.version)
        work = codec.decode_act(request, offer.bundle.spec, max_rows=self._max_rows)
        timeout_s = remaining_s(self.context, request.timeout_us)
        call = offer.batcher.admit(work.rows, kind=work.kind, priority=request.priority, timeout_s=timeout_s)
        return _Act(offer, work, call, sequence=request.sequence)

    def refusal(self, request: ActRequestBlocks, failure: ServingError) -> bytes:
        """A reply without actions, with the reason why."""
        status: int = failure.status.value[0]
        reason = Failure(code=status, message=str(failure))
        return ActResponseBlocks(sequence=request.sequence, failure=reason).SerializeToString()


class _Act(NamedTuple):
    """A request whose answer is on its way."""

    offer: Offer
    work: codec.Work
    call: Call
    sequence: int

    async def reply(self) -> bytes:
        return encode_actions(self.offer, self.work, await self.call.answer, sequence=self.sequence)

    def withdraw(self) -> None:
        self.offer.batcher.withdraw(self.call)


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
