"""HttpGateway: answers HTTP requests with the methods of `inference.GRPCInferenceService`.

    GET  /v2                                        ServerMetadata
    GET  /v2/health/live, /v2/health/ready          ServerLive, ServerReady
    GET  /v2/models/stats                           ModelStatistics, of every model
    GET  /v2/models/NAME[/versions/VERSION]         ModelMetadata
    GET  .../ready, .../config, .../stats           ModelReady, ModelConfig, ModelStatistics
    POST .../infer                                  ModelInfer

Parsing, limits, metrics, spans and shutdown are those of the methods (`serving.api.handlers`), so a request gets the
same answer as over gRPC. The calls of the model repository belong to operators and are not here.
"""

import urllib.parse
from collections.abc import Callable
from typing import Any, NamedTuple

from google.protobuf.message import Message

from serving.api.handlers import RpcHandlers
from serving.api.http.exchange import (
    BINARY,
    JSON,
    Exchange,
    HttpError,
    HttpReply,
    HttpRequest,
    error_reply,
)
from serving.api.open_inference import json_request
from serving.api.open_inference import open_inference_pb2 as pb
from serving.api.open_inference.json_reply import JsonReply, to_dict, to_json, write
from serving.api.open_inference.service import SERVICE_NAME, OpenInferenceService
from serving.api.rpc import RpcContext
from serving.errors import DrainingError, NotReadyError, echo

_MAX_DIGITS = 12  # of the length in a header
_GET, _POST = ("GET", "HEAD"), ("POST",)
_SERVER = {"": "ServerMetadata", "health/live": "ServerLive", "health/ready": "ServerReady"}
_MODEL = {"": "ModelMetadata", "ready": "ModelReady", "config": "ModelConfig", "stats": "ModelStatistics"}
_INFER = "ModelInfer"
_ORIGIN = "origin"  # browsers add it to what a page posts
_BINARY_TENSORS = "binary_tensor_data"  # Triton's name of its extension, which only HTTP needs


_ACTIONS = {rpc: action for action, rpc in (*_MODEL.items(), ("infer", _INFER))}
_SERVER_PATHS = {rpc: path for path, rpc in _SERVER.items()}


class Route(NamedTuple):
    """What a path means."""

    rpc: str  # the method of the service
    model: str = ""
    version: str = ""  # empty: the live one

    @property
    def template(self) -> str:
        """The path with the names of parameters in place of their values, such as /v2/models/{model}/infer."""
        if self.rpc in _SERVER_PATHS:
            parts = ["/v2", _SERVER_PATHS[self.rpc]]
        else:
            version = ["versions", "{version}"] if self.version else []
            parts = ["/v2/models", *(["{model}"] if self.model else []), *version, _ACTIONS[self.rpc]]
        return "/".join(filter(None, parts))


class HttpGateway:
    """Answers the requests of an HTTP port.

    Args:
        service: has the methods.
        handlers: make them, and say whether the server shuts down.
        max_body_bytes: largest body, with binary tensors.
        max_rows: most rows of one request.
        authorize: called for each request before its body is read, with the name of its method and its headers, as
            `RpcContext.metadata`. Returns the context of the call. Raises a ServingError if the caller may not call it.
            None: anyone may call everything, except for web pages.
    """

    def __init__(
        self,
        service: OpenInferenceService,
        *,
        handlers: RpcHandlers,
        max_body_bytes: int,
        max_rows: int,
        authorize: Callable[[RpcContext], RpcContext] | None = None,
    ) -> None:
        self._service = service
        self._rpc = service.service()
        self._handlers = handlers
        self._max_body_bytes = max_body_bytes
        self._max_rows = max_rows
        self._authorize = authorize

    async def answer(self, request: HttpRequest, exchange: Exchange) -> HttpReply:
        """Answer a request.

        Raises:
            HttpError: the request is refused for a reason that only HTTP has.
            ServingError: it is refused as it would be over gRPC.
        """
        route = find_route(request)
        context = RpcContext(
            f"/{SERVICE_NAME}/{route.rpc}",
            connection=exchange.peer,
            caller=exchange.peer,
            metadata=lambda: request.headers,
            hold_reply=exchange.hold,
            has_span=True,
        )
        if self._authorize:
            context = self._authorize(context)
        elif _ORIGIN in request.headers:  # a page that the browser of this machine shows could reach a loopback port
            raise HttpError(403, "a server without tokens does not answer web pages; start it with --tokens")
        if route.rpc == _INFER:
            return await self._infer(request, route, exchange, context)
        return await self._describe(route, context)

    async def _infer(self, request: HttpRequest, route: Route, exchange: Exchange, context: RpcContext) -> HttpReply:
        json_bytes = _json_bytes(request)
        overload = self._rpc.overload
        if overload is not None and overload.is_active():
            overload.check(context)
        raw = await exchange.read_body(json_request.MAX_JSON_BYTES if json_bytes is None else self._max_body_bytes)
        binary, written = False, JsonReply(b"", None)

        def read(raw: bytes) -> pb.ModelInferRequest:
            nonlocal binary
            message, binary = json_request.read(
                raw, json_bytes=json_bytes, model=route.model, version=route.version, max_rows=self._max_rows
            )
            return message

        def serialize(reply: pb.ModelInferResponse) -> bytes:
            nonlocal written
            written = write(reply, binary=binary)
            return written.body

        calling = self._service.infer(read, serialize)(raw, context)
        del raw
        body = await calling
        if written.json_bytes is None:
            return HttpReply(200, (JSON,), body)
        return HttpReply(200, (BINARY, (json_request.HEADER, str(written.json_bytes))), body)

    async def _describe(self, route: Route, context: RpcContext) -> HttpReply:
        if self._handlers.draining:  # the methods would hold the call, and probes must know now
            if route.rpc == "ServerReady":
                raise DrainingError
            if route.rpc == "ServerLive":
                return HttpReply(200, (JSON,), to_json({"live": True}))
        request: Message = getattr(pb, f"{route.rpc}Request")()
        if route.model:
            request = type(request)(name=route.model, version=route.version)
        raw = await self._rpc.unary[route.rpc](request.SerializeToString(), context)
        reply: Any = getattr(pb, f"{route.rpc}Response").FromString(raw)
        if isinstance(reply, pb.ServerReadyResponse | pb.ModelReadyResponse) and not reply.ready:
            if not self._service.is_ready:
                raise NotReadyError("the server is still compiling its policies")
            return error_reply(404, f"{echo(route.model)} is not ready: there is no such policy, or no such version")
        content = to_dict(reply.config if isinstance(reply, pb.ModelConfigResponse) else reply)
        if isinstance(reply, pb.ServerMetadataResponse):
            content["extensions"].append(_BINARY_TENSORS)
        elif isinstance(reply, pb.ModelReadyResponse):
            content = {"name": route.model} | content
        return HttpReply(200, (JSON,), to_json(content))


def find_route(request: HttpRequest) -> Route:
    """Return what the path of a request means.

    Raises:
        HttpError: there is no such path, or the path does not have this method.
    """
    try:
        path = urllib.parse.urlsplit(request.target).path.removesuffix("/")
        parts = [urllib.parse.unquote(part, errors="strict") for part in path.split("/")]
    except ValueError as error:  # also UnicodeDecodeError
        raise HttpError(400, "the path of the request cannot be read") from error
    route = None
    match parts:
        case ["", "v2", "models", "stats"]:
            route = Route("ModelStatistics")
        case ["", "v2", "models", model, "versions", version, *action] if model and version and len(action) <= 1:
            route = _model_route("".join(action), model, version)
        case ["", "v2", "models", model, *action] if model and len(action) <= 1:
            route = _model_route("".join(action), model, "")
        case ["", "v2", *rest] if rpc := _SERVER.get("/".join(rest)):
            route = Route(rpc)
        case _:
            pass
    if route is None:
        raise HttpError(404, f"there is no path {echo(path)}; paths begin with /v2, such as /v2/models/NAME/infer")
    allowed = _POST if route.rpc == _INFER else _GET
    if request.method not in allowed:
        raise HttpError(
            405, f"{echo(path)} takes {allowed[0]}, got {echo(request.method)}", ("allow", ", ".join(allowed))
        )
    return route


def _model_route(action: str, model: str, version: str) -> Route | None:
    rpc = _INFER if action == "infer" else _MODEL.get(action)
    return Route(rpc, model, version) if rpc else None


def _json_bytes(request: HttpRequest) -> int | None:
    """Return the length of the JSON at the beginning of the body, if binary data follows it.

    Raises:
        HttpError: the body is compressed, or the length is no number.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", ""):
        raise HttpError(
            415,
            f"the content-encoding {echo(encoding)} is not supported; send the body as it is",
            ("accept-encoding", "identity"),
        )
    stated = request.headers.get(json_request.HEADER.lower())
    if stated is None:
        return None
    if not (stated.isascii() and stated.isdigit() and len(stated) <= _MAX_DIGITS):
        raise HttpError(400, f"{json_request.HEADER} must be a number of bytes, got {echo(stated)}")
    return int(stated)
