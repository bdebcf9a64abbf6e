"""The gRPC service `inference.GRPCInferenceService`: which method answers what."""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import grpc
from google.protobuf.message import Message

from serving.api import codec
from serving.api.handlers import Calls, Context
from serving.api.open_inference import open_inference_pb2 as pb
from serving.api.open_inference.infer_request import InferRequests, ReceivedRequest
from serving.api.open_inference.infer_stream import METHOD as MODEL_STREAM_INFER
from serving.api.open_inference.infer_stream import SERVICE_NAME, InferStream
from serving.api.open_inference.metadata import model_config, model_metadata, server_metadata
from serving.api.open_inference.statistics import StatisticsByVersion
from serving.config import ServeConfig
from serving.errors import NotFoundError, UnavailableError
from serving.policies.registry import PolicyRegistry, ServedPolicy
from serving.telemetry.metrics import NO_POLICY, Metrics

_AboutModel: TypeAlias = (
    pb.ModelReadyRequest | pb.ModelMetadataRequest | pb.ModelConfigRequest | pb.ModelStatisticsRequest
)
_Asked = TypeVar(
    "_Asked", pb.ModelReadyRequest, pb.ModelMetadataRequest, pb.ModelConfigRequest, pb.ModelStatisticsRequest
)


class OpenInferenceService:
    """Answers the methods of the protocol, and of Triton's extensions those that its tools need.

    Args:
        policies: the policies.
        calls: counts outcomes, and knows when the server closes.
        metrics: counts the rows and batches of each policy.
        config: how calls are scheduled.
    """

    def __init__(self, policies: PolicyRegistry, *, calls: Calls, metrics: Metrics, config: ServeConfig) -> None:
        self._policies = policies
        self._calls = calls
        self._unary = functools.partial(calls.unary, service=SERVICE_NAME)
        self._config = config
        self._tallies = StatisticsByVersion(metrics)
        self._inferences = InferRequests(policies, calls=calls, tallies=self._tallies, max_rows=config.max_call_rows)

    def handlers(self) -> grpc.GenericRpcHandler:
        """The methods, to be added to a server."""
        inferences, about_server, about_model = self._inferences, self._about_server, self._about_model
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "ServerLive": about_server("ServerLive", pb.ServerLiveRequest, answer=_server_live),
            "ServerReady": about_server("ServerReady", pb.ServerReadyRequest, answer=self._server_ready),
            "ServerMetadata": about_server("ServerMetadata", pb.ServerMetadataRequest, answer=server_metadata),
            "ModelReady": about_model("ModelReady", pb.ModelReadyRequest, answer=self._model_ready),
            "ModelMetadata": about_model("ModelMetadata", pb.ModelMetadataRequest, answer=self._model_metadata),
            "ModelConfig": about_model("ModelConfig", pb.ModelConfigRequest, answer=self._model_config),
            "ModelStatistics": about_model("ModelStatistics", pb.ModelStatisticsRequest, answer=self._statistics),
            "ModelInfer": self._unary(
                "ModelInfer", parse=inferences.parse, label=inferences.label, answer=self._model_infer
            ),
            MODEL_STREAM_INFER: grpc.stream_stream_rpc_method_handler(self._model_stream_infer),
        }
        return grpc.method_handlers_generic_handler(SERVICE_NAME, methods)

    def _about_server(
        self, method: str, request_type: type[Message], *, answer: Callable[[], Message]
    ) -> "grpc.RpcMethodHandler[bytes, bytes]":
        """A method whose request says nothing."""

        async def reply(_request: Message, _context: Context) -> bytes:
            return answer().SerializeToString()

        def parse(raw: bytes) -> Message:
            return codec.parse(raw, request_type)

        return self._unary(method, parse=parse, label=lambda _: NO_POLICY, answer=reply)

    def _about_model(
        self, method: str, request_type: type[_Asked], *, answer: Callable[[_Asked], Message]
    ) -> "grpc.RpcMethodHandler[bytes, bytes]":
        """A method whose request names a model."""

        async def reply(request: _Asked, _context: Context) -> bytes:
            return answer(request).SerializeToString()

        def parse(raw: bytes) -> _Asked:
            return codec.parse(raw, request_type)

        return self._unary(method, parse=parse, label=lambda asked: self._policies.label(asked.name), answer=reply)

    def _server_ready(self) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=_is_there(self._policies.all))

    def _model_ready(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        return pb.ModelReadyResponse(ready=_is_there(lambda: self._find(request)))

    def _model_metadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        return model_metadata(self._find(request))

    def _model_config(self, request: pb.ModelConfigRequest) -> pb.ModelConfigResponse:
        return pb.ModelConfigResponse(config=model_config(self._find(request), self._config))

    def _statistics(self, request: pb.ModelStatisticsRequest) -> pb.ModelStatisticsResponse:
        policies = [self._find(request)] if request.name else self._policies.all().values()
        return pb.ModelStatisticsResponse(model_stats=map(self._tallies.encode, policies))

    async def _model_infer(self, arrival: ReceivedRequest, context: Context) -> bytes:
        inference = self._inferences.admit(arrival, context, write=pb.ModelInferResponse.SerializeToString)
        try:
            reply = await inference.reply()
        finally:
            inference.withdraw()  # it is still waiting only if the caller gave up
        if self._calls.tracing:
            self._calls.tracing.computed(inference.call.result.result())
        return reply

    async def _model_stream_infer(self, _requests: object, context: Context) -> None:
        await InferStream(context, inferences=self._inferences, calls=self._calls).run()

    def _find(self, asked: _AboutModel) -> ServedPolicy:
        return self._policies.find(asked.name, version=asked.version)


def _server_live() -> pb.ServerLiveResponse:
    return pb.ServerLiveResponse(live=True)


def _is_there(find: Callable[[], object]) -> bool:
    """Whether `find` finds something: a client that asks whether a model is ready wants a no, not an error."""
    try:
        find()
    except (NotFoundError, UnavailableError):
        return False
    return True
