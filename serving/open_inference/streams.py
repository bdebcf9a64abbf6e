"""One ModelStreamInfer: what its messages mean. `serving.ordered` says how requests become answers in order."""

from serving.calls import Calls, Context
from serving.errors import ServingError
from serving.open_inference import open_inference_pb2 as pb
from serving.open_inference.inference import Arrival, Inference, Inferences
from serving.ordered import OrderedStream

SERVICE_NAME = "inference.GRPCInferenceService"
METHOD = "ModelStreamInfer"


class InferStream(OrderedStream[Arrival]):
    """Serves one stream, once.

    Args:
        inferences: brings its requests into the batcher.
        calls: counts outcomes, and knows when the server closes.
    """

    method = METHOD
    service = SERVICE_NAME

    def __init__(self, context: Context, *, inferences: Inferences, calls: Calls) -> None:
        super().__init__(context, offers=inferences.offers, calls=calls)
        self._inferences = inferences

    def parse(self, raw: bytes) -> Arrival:
        """Read a ModelInferRequest."""
        return self._inferences.parse(raw)

    def label(self, request: Arrival) -> str:
        """The policy that `request` means, as a metric label."""
        return self._inferences.label(request)

    def admit(self, request: Arrival) -> Inference:
        """Bring `request` into the batcher. Raises as `OrderedStream.admit`."""
        return self._inferences.admit(request, self.context, write=_write)

    def refusal(self, request: Arrival, failure: ServingError) -> bytes:
        """A reply without actions, with the reason why and the id by which the peer knows its request."""
        about = pb.ModelInferResponse(id=request.request.id)
        return pb.ModelStreamInferResponse(error_message=str(failure), infer_response=about).SerializeToString()


def _write(reply: pb.ModelInferResponse) -> bytes:
    return pb.ModelStreamInferResponse(infer_response=reply).SerializeToString()
