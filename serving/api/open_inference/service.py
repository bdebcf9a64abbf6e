"""OpenInferenceService: the methods of `inference.GRPCInferenceService`."""

from collections.abc import Callable
from typing import TypeAlias, TypeVar

from google.protobuf.message import Message

from serving.access.roles import Role
from serving.api.handlers import RpcHandlers, parse
from serving.api.observers import Observers
from serving.api.open_inference import open_inference_pb2 as pb
from serving.api.open_inference.infer_request import InferRequests, Read, Serialize, read_message
from serving.api.open_inference.metadata import model_config, model_metadata, server_metadata
from serving.api.open_inference.statistics import StatisticsByVersion
from serving.api.ordered_stream import ordered_stream
from serving.api.overload_check import UnreadCallCheck
from serving.api.range_check import RangeCheck
from serving.api.rpc import Method, RpcContext, RpcService, UnaryMethod
from serving.config import ServeConfig
from serving.errors import NotFoundError, UnavailableError
from serving.policies.registry import PolicyRegistry, ServedPolicy
from serving.telemetry.metrics import NO_POLICY, Metrics

SERVICE_NAME = "inference.GRPCInferenceService"

_AboutModel: TypeAlias = (
    pb.ModelReadyRequest | pb.ModelMetadataRequest | pb.ModelConfigRequest | pb.ModelStatisticsRequest
)
_NamesModel = TypeVar(
    "_NamesModel", pb.ModelReadyRequest, pb.ModelMetadataRequest, pb.ModelConfigRequest, pb.ModelStatisticsRequest
)


class OpenInferenceService:
    """Answers the methods of the protocol, and those of Triton's extensions that Triton's tools need.

    Args:
        policies: the policies that are served.
        handlers: make the methods.
        metrics: count the rows and batches of each policy.
        config: how the server batches, for ModelConfig.
        range_check: finds states far from those of training; None: no state is.
        observers: get the requests that are answered; None: new ones.
    """

    def __init__(
        self,
        policies: PolicyRegistry,
        *,
        handlers: RpcHandlers,
        metrics: Metrics,
        config: ServeConfig,
        range_check: RangeCheck | None = None,
        observers: Observers | None = None,
    ) -> None:
        self._policies = policies
        self._handlers = handlers
        self._config = config
        self._statistics = StatisticsByVersion(metrics)
        self._range_check = range_check
        self._observers = observers or Observers(policies)

    def service(self) -> RpcService:
        """Return the methods, for a transport."""
        about_server, about_model = self._about_server, self._about_model
        infer = self._infer_requests(pb.ModelInferResponse.SerializeToString)
        stream_infer = self._infer_requests(_serialize_in_stream)
        return RpcService(
            SERVICE_NAME,
            unary={
                "ServerLive": Method(
                    Role.ANYONE, about_server("ServerLive", pb.ServerLiveRequest, answer=_server_live)
                ),
                "ServerReady": Method(
                    Role.ANYONE, about_server("ServerReady", pb.ServerReadyRequest, answer=self._server_ready)
                ),
                "ServerMetadata": Method(
                    Role.DESCRIBE, about_server("ServerMetadata", pb.ServerMetadataRequest, answer=server_metadata)
                ),
                "ModelReady": Method(
                    Role.DESCRIBE, about_model("ModelReady", pb.ModelReadyRequest, answer=self._model_ready)
                ),
                "ModelMetadata": Method(
                    Role.DESCRIBE, about_model("ModelMetadata", pb.ModelMetadataRequest, answer=self._model_metadata)
                ),
                "ModelConfig": Method(
                    Role.DESCRIBE, about_model("ModelConfig", pb.ModelConfigRequest, answer=self._model_config)
                ),
                "ModelStatistics": Method(
                    Role.DESCRIBE,
                    about_model("ModelStatistics", pb.ModelStatisticsRequest, answer=self._model_statistics),
                ),
                "ModelInfer": Method(Role.ACT, self._handlers.inference("ModelInfer", infer)),
            },
            streams={
                "ModelStreamInfer": Method(
                    Role.ACT,
                    ordered_stream("ModelStreamInfer", stream_infer, handlers=self._handlers, policies=self._policies),
                )
            },
            overload=UnreadCallCheck("ModelInfer", policies=self._policies, handlers=self._handlers),
        )

    def infer(self, read: Read, serialize: Serialize) -> UnaryMethod:
        """Return ModelInfer for requests and replies in a format other than that of gRPC."""
        return self._handlers.inference("ModelInfer", self._infer_requests(serialize, read=read))

    @property
    def is_ready(self) -> bool:
        """Whether the policies answer requests, as ServerReady says."""
        return _finds(self._policies.live)

    def _infer_requests(self, serialize: Serialize, *, read: Read = read_message) -> InferRequests:
        return InferRequests(
            self._policies,
            statistics=self._statistics,
            max_rows=self._config.max_call_rows,
            clock=self._handlers.clock,
            serialize=serialize,
            observers=self._observers,
            range_check=self._range_check,
            read=read,
        )

    def _about_server(self, name: str, request_type: type[Message], *, answer: Callable[[], Message]) -> UnaryMethod:
        """Return a method whose request has no fields."""

        async def reply(_request: Message, _context: RpcContext) -> bytes:
            return answer().SerializeToString()

        return self._handlers.unary(
            name, parse=lambda raw: parse(raw, request_type), label=lambda _: NO_POLICY, answer=reply
        )

    def _about_model(
        self, name: str, request_type: type[_NamesModel], *, answer: Callable[[_NamesModel], Message]
    ) -> UnaryMethod:
        """Return a method whose request names a model."""

        async def reply(request: _NamesModel, _context: RpcContext) -> bytes:
            return answer(request).SerializeToString()

        return self._handlers.unary(
            name,
            parse=lambda raw: parse(raw, request_type),
            label=lambda request: self._policies.label(request.name),
            answer=reply,
        )

    def _server_ready(self) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self.is_ready)

    def _model_ready(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        return pb.ModelReadyResponse(ready=_finds(lambda: self._find(request)))

    def _model_metadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        served = self._find(request)
        return model_metadata(served, [each.version for each in self._policies.loaded(served.name)])

    def _model_config(self, request: pb.ModelConfigRequest) -> pb.ModelConfigResponse:
        return pb.ModelConfigResponse(config=model_config(self._find(request), self._config))

    def _model_statistics(self, request: pb.ModelStatisticsRequest) -> pb.ModelStatisticsResponse:
        served = [self._find(request)] if request.name else self._policies.live().values()
        return pb.ModelStatisticsResponse(model_stats=map(self._statistics.encode, served))

    def _find(self, request: _AboutModel) -> ServedPolicy:
        return self._policies.find(request.name, version=request.version)


def _serialize_in_stream(reply: pb.ModelInferResponse) -> bytes:
    return pb.ModelStreamInferResponse(infer_response=reply).SerializeToString()


def _server_live() -> pb.ServerLiveResponse:
    return pb.ServerLiveResponse(live=True)


def _finds(find: Callable[[], object]) -> bool:
    """Return whether `find` succeeds. The answer to "is this model ready?" is no, not an error."""
    try:
        find()
    except (NotFoundError, UnavailableError):
        return False
    return True
