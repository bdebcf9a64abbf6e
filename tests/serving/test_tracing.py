"""Spans, as OpenTelemetry's own exporter for tests gets them."""

import builtins
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from kilolayer.v1 import policy_pb2 as pb
from kilolayer.v1.policy_pb2_grpc import PolicyStub
from serving.api.tracing import Tracing
from serving.config import ServeConfig
from serving.errors import StartupError
from serving.loading import load

# The example of https://www.w3.org/TR/trace-context/#traceparent-header
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def spans_of_calls(policies: Path) -> tuple[dict[str, ReadableSpan], pb.ActResponse]:
    """The spans of one good Act within a trace, one bad one, a List and an ActStream; and the reply to the first."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    replies: list[pb.ActResponse] = []

    config = ServeConfig(policies=(policies,), listen="127.0.0.1:0", metrics_port=0, metrics=False, max_batch_rows=1)
    server = await load(config, collectors=CollectorRegistry(), tracing=Tracing(provider))
    await server.start()
    await server.prepare()
    server.open()
    async with grpc.aio.insecure_channel(str(server.address)) as channel:
        stub: Any = PolicyStub(channel)
        request = pb.ActRequest(state=[0] * 4, goal=[0] * 2)
        replies.append(await stub.Act(request, metadata=(("traceparent", PARENT), ("x-bin", b"\x00")), timeout=60))
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Act(pb.ActRequest(), timeout=60)
        await stub.List(pb.ListRequest(), timeout=60)
        stream = stub.ActStream(timeout=60)
        await stream.write(request)
        await stream.done_writing()
        assert (await stream.read()).version == "1000"
        assert await stream.code() is grpc.StatusCode.OK
    assert await server.drain()
    good, bad, listing, stream = exporter.get_finished_spans()
    return {"good": good, "bad": bad, "list": listing, "stream": stream}, replies[0]


async def test_a_span_describes_its_call_within_the_callers_trace(policies: Path) -> None:
    spans, reply = await spans_of_calls(policies)
    good, bad, listing = spans["good"], spans["bad"], spans["list"]
    assert good.name == "kilolayer.v1.Policy/Act"
    assert good.parent is not None
    assert f"{good.parent.trace_id:032x}-{good.parent.span_id:016x}" == PARENT[3:-3]
    common = {"rpc.system": "grpc", "rpc.service": "kilolayer.v1.Policy", "rpc.method": "Act"}
    assert dict(good.attributes or {}) == {
        **common,
        "rpc.grpc.status_code": 0,
        "kilolayer.policy": "point_u_maze",
        "kilolayer.queue_us": reply.queue_us,
        "kilolayer.compute_us": reply.compute_us,
        "kilolayer.batch_rows": 1,
    }
    assert good.status.is_unset
    assert dict(bad.attributes or {}) == {**common, "rpc.grpc.status_code": 3, "kilolayer.policy": "point_u_maze"}
    assert (bad.parent, bad.status.is_ok, bad.status.description) == (None, False, "INVALID_ARGUMENT")
    assert listing.name == "kilolayer.v1.Policy/List"
    assert (listing.attributes or {})["kilolayer.policy"] == "(none)"
    stream = spans["stream"]
    assert (stream.name, stream.status.is_unset) == ("kilolayer.v1.Policy/ActStream", True)


async def test_tracing_without_its_library_names_the_command(policies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "serving.api.tracing":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(StartupError) as error:
        await load(ServeConfig(policies=(policies,), tracing=True), collectors=CollectorRegistry())
    assert str(error.value) == (
        "--tracing needs the extra `tracing`: pip install -e '.[tracing]'; or leave out --tracing"
    )
