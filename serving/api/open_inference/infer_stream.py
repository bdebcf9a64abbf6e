"""The messages of one ModelStreamInfer; `serving.api.ordered_stream` answers them in order."""

from serving.api.handlers import Calls, Context
from serving.api.open_inference import open_inference_pb2 as pb
from serving.api.open_inference.infer_request import InferRequests, PendingInference, ReceivedRequest
from serving.api.ordered_stream import OrderedStream
from serving.errors import ServingError

SERVICE_NAME = "inference.GRPCInferenceService"
METHOD = "ModelStreamInfer"


class InferStream(OrderedStream[ReceivedRequest]):
    """Serves one stream, once.

    Args:
        inferences: brings its requests into the batcher.
        calls: counts outcomes, and knows when the server closes.
    """

    method = METHOD
    service = SERVICE_NAME

    def __init__(self, context: Context, *, inferences: InferRequests, calls: Calls) -> None:
        super().__init__(context, policies=inferences.policies, calls=calls)
        self._inferences = inferences

    def parse(self, raw: bytes) -> ReceivedRequest:
        """Read a ModelInferRequest."""
        return self._inferences.parse(raw)

    def label(self, request: ReceivedRequest) -> str:
        """The policy that `request` means, as a metric label."""
        return self._inferences.label(request)

    def admit(self, request: ReceivedRequest) -> PendingInference:
        """Bring `request` into the batcher. Raises as `OrderedStream.admit`."""
        return self._inferences.admit(request, self.context, write=_write)

    def refusal(self, request: ReceivedRequest, failure: ServingError) -> bytes:
        """A reply without actions, with the reason why and the id by which the peer knows its request."""
        about = pb.ModelInferResponse(id=request.request.id)
        return pb.ModelStreamInferResponse(error_message=str(failure), infer_response=about).SerializeToString()


def _write(reply: pb.ModelInferResponse) -> bytes:
    return pb.ModelStreamInferResponse(infer_response=reply).SerializeToString()
