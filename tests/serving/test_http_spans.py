"""The spans of HTTP requests, as OpenTelemetry's own exporter for tests gets them."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from serving.api.http.events import HttpEvents
from serving.api.http.exchange import Exchange, HttpReply, HttpRequest
from serving.api.http.spans import HttpTracing
from serving.api.tracing import Tracing
from serving.errors import NotReadyError, ServingError
from tests.serving.fakes import MODEL, AnsweringBatcher
from tests.serving.http_bench import GET, Served, post, served, until
from tests.serving.test_http_gateway import BODY, INFER, Bench

# The example of https://www.w3.org/TR/trace-context/#traceparent-header
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Traced:
    """Tracing whose finished spans can be read, and the events of a port with it."""

    def __init__(self, scheme: str = "http") -> None:
        self._exporter, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracing = Tracing(provider)
        self.events = HttpEvents(begin_span=HttpTracing(self.tracing, scheme=scheme).begin)

    async def span(self) -> ReadableSpan:
        await until(lambda: bool(self._exporter.get_finished_spans()))
        (span,) = self._exporter.get_finished_spans()
        return span

    async def of(self, raw: bytes, refusal: ServingError | None = None) -> tuple[int, ReadableSpan]:
        """The status of the reply to `raw` of a server with a policy, and the only span."""
        bench = Bench(AnsweringBatcher(), tracing=self.tracing)
        bench.refusal = refusal
        async with served(bench.gateway.answer, events=self.events) as server:
            return await status_of(server, raw), await self.span()


async def status_of(server: Served, raw: bytes) -> int:
    peer = await server.connect()
    peer.send(raw)
    return (await peer.reply(has_body=not raw.startswith(b"HEAD")))[0]


def attributes(span: ReadableSpan) -> Mapping[str, Any]:
    return dict(span.attributes or {})


async def test_a_span_describes_an_inference_by_the_conventions_for_http() -> None:
    raw = post(json.dumps(BODY).encode(), f"traceparent: {PARENT}", path=INFER)
    status, span = await Traced().of(raw)
    assert (status, span.name, span.kind) == (200, "POST /v2/models/{model}/infer", SpanKind.SERVER)
    assert span.parent is not None
    assert f"{span.parent.trace_id:032x}-{span.parent.span_id:016x}" == PARENT[3:-3]
    assert span.status.status_code is StatusCode.UNSET
    found = attributes(span)
    computed = {name: found[name] for name in ("kilolayer.queue_us", "kilolayer.compute_us", "kilolayer.batch_rows")}
    assert found == computed | {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": "/v2/models/{model}/infer",
        "url.path": f"/v2/models/{MODEL}/infer",
        "url.scheme": "http",
        "kilolayer.policy": MODEL,
    }


async def test_a_query_and_tls_are_in_the_span() -> None:
    status, span = await Traced("https").of(GET.replace(b"/a?b", b"/v2/health/live?x=1"))
    assert (status, span.name) == (200, "GET /v2/health/live")
    assert attributes(span) == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "http.route": "/v2/health/live",
        "url.path": "/v2/health/live",
        "url.query": "x=1",
        "url.scheme": "https",
        "kilolayer.policy": "(none)",
    }


@pytest.mark.parametrize(
    ("raw", "status", "name", "expected"),
    [
        (post(b"{}", path=INFER), 400, "POST /v2/models/{model}/infer", {"kilolayer.policy": "(unknown)"}),
        (GET, 404, "GET", {"url.path": "/a", "url.query": "b"}),
        (GET.replace(b"/a", b"//[/a"), 400, "GET", {"url.path": "//[/a", "url.query": "b"}),
        (
            GET.replace(b"GET /a?b", b"brew /v2"),
            405,
            "HTTP",
            {"http.request.method": "_OTHER", "http.request.method_original": "brew"},
        ),
    ],
)
async def test_a_refused_request_is_no_error_of_the_server(
    raw: bytes, status: int, name: str, expected: dict[str, str]
) -> None:
    answered, span = await Traced().of(raw)
    assert (answered, span.name, span.status.status_code) == (status, name, StatusCode.UNSET)
    found = attributes(span)
    assert found["http.response.status_code"] == status
    assert found.items() >= expected.items()
    assert not found.keys() & {"error.type", "rpc.system", "rpc.grpc.status_code"}


async def test_a_failure_of_the_server_is_an_error() -> None:
    status, span = await Traced().of(GET.replace(b"/a?b", b"/v2"), NotReadyError("starting"))
    assert (status, span.status.status_code, span.status.description) == (503, StatusCode.ERROR, None)
    found = attributes(span)
    assert (found["http.response.status_code"], found["error.type"]) == (503, "503")


async def test_the_span_of_a_request_whose_caller_leaves_has_no_status() -> None:
    traced, begun = Traced(), asyncio.Event()

    async def wait(_request: HttpRequest, _exchange: Exchange) -> HttpReply:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with served(wait, events=traced.events) as server:
        peer = await server.connect()
        peer.send(GET)
        await begun.wait()
        peer.writer.close()
        span = await traced.span()
    assert span.status.status_code is StatusCode.ERROR
    found = attributes(span)
    assert found["error.type"] == "cancelled"
    assert "http.response.status_code" not in found
