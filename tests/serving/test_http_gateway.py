"""The Open Inference Protocol over HTTP, without sockets: paths, statuses, and what the methods of gRPC get."""

import asyncio
import json
import struct
from typing import Any, cast

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from serving.api.handlers import RpcHandlers
from serving.api.http.exchange import HttpError, HttpReply, HttpRequest, failure_reply
from serving.api.http.gateway import HttpGateway, find_route
from serving.api.open_inference.json_request import MAX_JSON_BYTES
from serving.api.open_inference.service import OpenInferenceService
from serving.api.rpc import RpcContext
from serving.api.tracing import Tracing
from serving.config import ServeConfig
from serving.errors import (
    ComputationError,
    DeadlinePassedError,
    DrainingError,
    InvalidRequestError,
    MemoryLimitError,
    NoCriticError,
    NotReadyError,
    OverloadedError,
    Reason,
    ServingError,
    Status,
    UnknownPolicyError,
    UnknownVersionError,
)
from serving.policies.registry import PolicyRegistry
from serving.telemetry.metrics import Metrics
from tests.serving.fakes import BUNDLE, MODEL, AnsweringBatcher, FakeBatcher, policies_of, turn_loop

INFER = f"/v2/models/{MODEL}/infer"
STATE = {"name": "state", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
GOAL = {"name": "goal", "datatype": "FP32", "shape": [1, 2], "data": [5, 6]}
BODY = {"id": "a", "inputs": [STATE, GOAL]}
MAX_BODY = 2**20


class FakeExchange:
    """A call whose body is there; it records how many bytes of it were allowed, and what is held."""

    peer = "http:10.0.0.7:1"

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.allowed: list[int] = []
        self.held: list[int] = []

    async def read_body(self, max_bytes: int) -> bytes:
        self.allowed.append(max_bytes)
        return self._body

    def hold(self, size: int) -> None:
        self.held.append(size)


class Bench:
    """The gateway around `batcher`."""

    def __init__(
        self, batcher: FakeBatcher, *, policies: PolicyRegistry | None = None, tracing: Tracing | None = None
    ) -> None:
        self.collectors = CollectorRegistry()
        metrics = Metrics(self.collectors)
        self.policies = policies or policies_of(batcher)
        self.handlers = RpcHandlers(metrics, tracing=tracing)
        self.service = OpenInferenceService(
            self.policies,
            handlers=self.handlers,
            metrics=metrics,
            config=ServeConfig(policies=(BUNDLE.path,), max_call_rows=8),
        )
        self.refusal: ServingError | None = None
        self.authorized: list[RpcContext] = []
        self.gateway = HttpGateway(
            self.service, handlers=self.handlers, max_body_bytes=MAX_BODY, max_rows=8, authorize=self._authorize
        )
        self.exchange = FakeExchange(b"")

    def _authorize(self, context: RpcContext) -> RpcContext:
        self.authorized.append(context)
        if self.refusal:
            raise self.refusal
        return context

    async def reply(self, request: HttpRequest, body: bytes = b"") -> HttpReply:
        """The reply, also to a request that is refused, as a connection sends it."""
        self.exchange = FakeExchange(body)
        try:
            return await self.gateway.answer(request, self.exchange)
        except HttpError as error:
            return error.reply
        except ServingError as error:
            return failure_reply(error)

    async def get(self, path: str) -> tuple[int, Any]:
        reply = await self.reply(HttpRequest("GET", path, {}))
        assert reply.headers[0] == ("content-type", "application/json")
        return reply.status, json.loads(reply.body)

    async def infer(self, content: Any = BODY, path: str = INFER, **headers: str) -> tuple[int, Any]:
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        reply = await self.reply(HttpRequest("POST", path, headers), raw)
        return reply.status, json.loads(reply.body)

    def count(self, code: str, policy: str = MODEL) -> float | None:
        labels = {"method": "ModelInfer", "policy": policy, "code": code}
        return self.collectors.get_sample_value("kilolayer_requests_total", labels)


async def test_what_the_server_and_its_models_are() -> None:
    bench = Bench(AnsweringBatcher())
    status, about = await bench.get("/v2")
    assert (status, about["name"]) == (200, "kilolayer")
    assert "binary_tensor_data" in about["extensions"]
    assert await bench.get("/v2/health/live") == (200, {"live": True})
    assert await bench.get("/v2/health/ready") == (200, {"ready": True})
    status, about = await bench.get(f"/v2/models/{MODEL}?query=1")
    assert (status, about["name"], about["versions"]) == (200, MODEL, ["1000"])
    assert about["inputs"][0] == {"name": "state", "datatype": "FP32", "shape": [-1, 4]}
    assert await bench.get(f"/v2/models/{MODEL}/versions/1000/") == (200, about)
    assert await bench.get(f"/v2/models/{MODEL}/ready") == (200, {"name": MODEL, "ready": True})
    config = (await bench.get(f"/v2/models/{MODEL}/config"))[1]
    assert (config["max_batch_size"], config["output"]) == (
        8,
        [{"name": "action", "data_type": "TYPE_FP32", "dims": [2]}],
    )
    await bench.infer()
    for path in ("/v2/models/stats", f"/v2/models/{MODEL}/stats", f"/v2/models/{MODEL}/versions/1000/stats"):
        (statistics,) = (await bench.get(path))[1]["model_stats"]
        assert (statistics["version"], statistics["inference_stats"]["success"]["count"]) == ("1000", 1)


@pytest.mark.parametrize("path", ["/", "/v1", "/v2/models", "/v2/models//infer", "/v2/repository/index", INFER + "/x"])
async def test_other_paths_do_not_exist(path: str) -> None:
    status, content = await Bench(AnsweringBatcher()).get(path)
    shown = path.removesuffix("/")
    assert (status, content["error"]) == (
        404,
        f"there is no path '{shown}'; paths begin with /v2, such as /v2/models/NAME/infer",
    )


@pytest.mark.parametrize(
    "template",
    [
        "/v2",
        "/v2/health/live",
        "/v2/models/stats",
        "/v2/models/{model}",
        "/v2/models/{model}/ready",
        "/v2/models/{model}/versions/{version}",
        "/v2/models/{model}/versions/{version}/stats",
    ],
)
def test_a_route_has_the_template_of_its_path(template: str) -> None:
    path = template.replace("{model}", "ant").replace("{version}", "1000")
    assert find_route(HttpRequest("GET", path, {})).template == template


def test_a_path_has_one_method_and_may_be_quoted() -> None:
    assert find_route(HttpRequest("GET", "http://h/v2/models/a%20b/versions/1%2F2", {})) == (
        "ModelMetadata",
        "a b",
        "1/2",
    )
    with pytest.raises(HttpError, match=r"'/v2' takes GET, got 'POST'") as wrong:
        find_route(HttpRequest("POST", "/v2", {}))
    assert (wrong.value.reply.status, ("allow", "GET, HEAD") in wrong.value.reply.headers) == (405, True)
    for target in ("/v2/models/%ff", "http://[/v2"):
        with pytest.raises(HttpError, match="the path of the request cannot be read"):
            find_route(HttpRequest("GET", target, {}))


async def test_a_request_reaches_the_batcher_and_its_actions_return() -> None:
    batcher = FakeBatcher()
    bench = Bench(batcher)
    parameters = {"timeout": 250_000, "priority": 1, "robot_id": "r"}
    asking = asyncio.create_task(bench.infer(BODY | {"parameters": parameters}))
    await batcher.until_admitted(1)
    (queued,) = batcher.admitted
    np.testing.assert_array_equal(queued.rows, [[1, 2, 3, 4, 5, 6]])
    assert (queued.connection, queued.priority, batcher.timeouts_s) == ("http:10.0.0.7:1", 3, [0.25])
    batcher.answer(np.array([[0.5, -0.25]], np.float32))
    assert await asking == (
        200,
        {
            "model_name": MODEL,
            "model_version": "1000",
            "id": "a",
            "outputs": [{"name": "action", "datatype": "FP32", "shape": [1, 2], "data": [0.5, -0.25]}],
        },
    )
    assert bench.exchange.allowed == [MAX_JSON_BYTES]
    assert bench.exchange.held[0] > 100
    assert bench.count("OK") == 1


async def test_binary_tensors_come_and_go() -> None:
    bench = Bench(AnsweringBatcher())
    about = [
        {"name": name, "datatype": "FP32", "shape": [1, dim], "parameters": {"binary_data_size": 4 * dim}}
        for name, dim in (("state", 4), ("goal", 2))
    ]
    head = json.dumps({"inputs": about, "parameters": {"binary_data_output": True}}).encode()
    headers = {"inference-header-content-length": str(len(head)), "content-encoding": "identity"}
    reply = await bench.reply(HttpRequest("POST", INFER, headers), head + struct.pack("<6f", *range(6)))
    assert bench.exchange.allowed == [MAX_BODY]
    (kind, (name, size)) = reply.headers
    assert (reply.status, kind, name) == (
        200,
        ("content-type", "application/octet-stream"),
        "Inference-Header-Content-Length",
    )
    assert json.loads(reply.body[: int(size)])["outputs"][0]["parameters"] == {"binary_data_size": 8}
    assert reply.body[int(size) :] == bytes(8)


@pytest.mark.parametrize(
    ("headers", "status", "message"),
    [
        ({"content-encoding": "gzip"}, 415, "the content-encoding 'gzip' is not supported; send the body as it is"),
        (
            {"inference-header-content-length": "-1"},
            400,
            "Inference-Header-Content-Length must be a number of bytes, got '-1'",
        ),
        (
            {"inference-header-content-length": "2, 2"},
            400,
            "Inference-Header-Content-Length must be a number of bytes, got '2, 2'",
        ),
    ],
)
async def test_wrong_headers_are_refused_before_the_body_is_read(
    headers: dict[str, str], status: int, message: str
) -> None:
    bench = Bench(AnsweringBatcher())
    assert await bench.infer(**headers) == (status, {"error": message})
    assert bench.exchange.allowed == []


async def test_a_body_that_is_no_request_is_counted_as_over_grpc() -> None:
    bench = Bench(AnsweringBatcher())
    assert await bench.infer(b"x") == (400, {"error": "the request is not JSON: see character 0 of 1"})
    assert bench.count("INVALID_ARGUMENT", "(unknown)") == 1
    status, content = await bench.infer(BODY | {"inputs": [STATE | {"shape": [1, 3], "data": [1, 2, 3]}, GOAL]})
    assert (status, content["error"]) == (400, "state must have shape [rows, 4], got [1, 3]")
    assert bench.count("INVALID_ARGUMENT") == 1
    status, content = await bench.infer(BODY | {"inputs": [STATE | {"shape": [9] * 50_000}, GOAL]})
    assert (status, content["error"]) == (400, "state must have shape [rows, 4], got 50000 dimensions")
    assert (await bench.infer(path="/v2/models/ant/infer"))[0] == 404
    assert (await bench.infer(path=f"/v2/models/{MODEL}/versions/9/infer"))[0] == 404


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (InvalidRequestError("no"), 400),
        (NoCriticError("no"), 400),
        (UnknownPolicyError("no"), 404),
        (UnknownVersionError("no"), 404),
        (OverloadedError("no", reason=Reason.QUEUE_FULL), 429),
        (MemoryLimitError("no"), 429),
        (ComputationError("no"), 500),
        (DrainingError("no"), 503),
        (NotReadyError("no"), 503),
        (DeadlinePassedError("no"), 504),
    ],
)
async def test_every_failure_has_its_status_and_reason(failure: ServingError, status: int) -> None:
    bench = Bench(FakeBatcher(failure))
    reply = await bench.reply(HttpRequest("POST", INFER, {}), json.dumps(BODY).encode())
    assert (reply.status, json.loads(reply.body)) == (status, {"error": "no"})
    headers = dict(reply.headers)
    assert headers.pop("kilolayer-reason") == failure.reason
    assert headers.pop("content-type") == "application/json"
    assert headers == ({"retry-after": "1"} if status == 503 else {})


async def test_under_overload_a_call_is_rejected_before_its_body_is_read() -> None:
    batcher = AnsweringBatcher()
    batcher.is_overloaded = True
    bench = Bench(batcher)
    status, content = await bench.infer()
    assert (status, content["error"].partition(";")[0]) == (429, "no room for http:10.0.0.7:1")
    assert bench.exchange.allowed == []
    assert bench.count("RESOURCE_EXHAUSTED", "(unread)") == 1


def test_the_headers_of_a_request_are_not_shown() -> None:
    request = HttpRequest("GET", "/v2", {"authorization": "Bearer x"})
    assert repr(request) == "HttpRequest(method='GET', target='/v2')"


async def test_callers_are_checked_before_the_body_is_read() -> None:
    bench = Bench(AnsweringBatcher())
    bench.refusal = ServingError("no token")
    bench.refusal.status = cast("Status", 16)  # UNAUTHENTICATED
    reply = await bench.reply(HttpRequest("POST", INFER, {"authorization": "Bearer x"}), b"")
    assert (reply.status, ("www-authenticate", "Bearer") in reply.headers) == (401, True)
    (context,) = bench.authorized
    assert context.method == "/inference.GRPCInferenceService/ModelInfer"
    assert context.metadata() == {"authorization": "Bearer x"}
    assert bench.exchange.allowed == []


async def test_without_tokens_web_pages_get_no_answer() -> None:
    bench = Bench(AnsweringBatcher())
    page = {"origin": "https://example.org"}
    assert (await bench.infer(**page))[0] == 200  # its token counts
    bench.gateway = HttpGateway(bench.service, handlers=bench.handlers, max_body_bytes=MAX_BODY, max_rows=8)
    assert (await bench.infer())[0] == 200
    message = "a server without tokens does not answer web pages; start it with --tokens"
    assert await bench.infer(**page) == (403, {"error": message})
    assert bench.exchange.allowed == []


async def test_a_server_that_is_not_ready_says_so() -> None:
    bench = Bench(AnsweringBatcher(), policies=PolicyRegistry(frozenset({MODEL}), default=MODEL))
    for path in ("/v2/health/ready", f"/v2/models/{MODEL}/ready", f"/v2/models/{MODEL}"):
        assert (await bench.get(path))[0] == 503
    assert await bench.get("/v2/health/live") == (200, {"live": True})
    status, content = await Bench(AnsweringBatcher()).get("/v2/models/ant/ready")
    assert (status, content["error"]) == (404, "'ant' is not ready: there is no such policy, or no such version")


async def test_while_the_server_drains_calls_are_held_and_health_answers() -> None:
    bench = Bench(AnsweringBatcher())
    bench.handlers.begin_draining()
    asking = asyncio.create_task(bench.infer())
    await turn_loop()
    assert not asking.done()
    assert (await bench.get("/v2/health/ready"))[0] == 503
    assert await bench.get("/v2/health/live") == (200, {"live": True})
    bench.handlers.refuse_held()
    status, content = await asking
    assert (status, content["error"]) == (
        503,
        "the server is shutting down",
    )
