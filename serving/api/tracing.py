"""Tracing: one OpenTelemetry span per call, within the caller's trace.

A span has the status, the policy, how long the call waited, how long its batches took, and how many rows they had. For
gRPC its name is that of the conventions for RPCs (https://opentelemetry.io/docs/specs/semconv/rpc/). The spans of HTTP
are made by `serving.api.http.spans`. OpenTelemetry's own variables say where spans are sent and which are kept, such as
OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_TRACES_SAMPLER.

OpenTelemetry is an optional dependency: import this module only if spans are wanted.
"""

import logging
from collections.abc import Mapping

from opentelemetry import propagate, trace
from opentelemetry.context import Context, attach
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from serving.api.rpc import RpcContext
from serving.batching.queue import InferenceResult
from serving.errors import Status

_OF_HEADERS = ("opentelemetry.baggage", "opentelemetry.trace")  # loggers that warn of every header that is malformed


_POLICY = "kilolayer.policy"


class Span:
    """The span of one call.

    Args:
        span: of OpenTelemetry.
        is_of_transport: whether the transport ends it, with the outcome.
    """

    def __init__(self, span: trace.Span, *, is_of_transport: bool = False) -> None:
        self._span = span
        self._is_of_transport = is_of_transport

    def end(self, policy: str, status: Status) -> None:
        """End it with the outcome of the call."""
        self._span.set_attribute(_POLICY, policy)
        if self._is_of_transport:
            return
        self._span.set_attribute("rpc.grpc.status_code", status.value)
        if status is not Status.OK:
            self._span.set_status(trace.StatusCode.ERROR, status.name)
        self._span.end()


class Tracing:
    """The spans of one server.

    Args:
        provider: makes them, and is shut down by `close`.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("kilolayer")
        for name in _OF_HEADERS:
            logging.getLogger(name).setLevel(logging.ERROR)

    def begin(self, context: RpcContext) -> Span:
        """Return the span of a call: that of its transport, or a new one for gRPC."""
        if context.has_span:
            return Span(trace.get_current_span(), is_of_transport=True)
        name = context.method[1:]
        service, method = name.split("/")
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
        return Span(self.start(name, context.metadata(), attributes=attributes))

    def start(self, name: str, metadata: Mapping[str, str], *, attributes: Mapping[str, str]) -> trace.Span:
        """Start a span: a child of the span in the caller's metadata (`traceparent`), current in this task."""
        parent = _parent(metadata)
        span = self._tracer.start_span(name, parent, kind=trace.SpanKind.SERVER, attributes=attributes)
        attach(trace.set_span_in_context(span, parent))  # never detached: the task ends with the call
        return span

    def computed(self, result: InferenceResult) -> None:
        """Add the queue time, computation time and batch size of a request to the span of the current task."""
        trace.get_current_span().set_attributes(
            {
                "kilolayer.queue_us": round(result.queue_s * 1e6),
                "kilolayer.compute_us": round(result.compute_s * 1e6),
                "kilolayer.batch_rows": result.batch_rows,
            }
        )

    def close(self) -> None:
        """Send the spans that were not sent yet."""
        self._provider.shutdown()


def _parent(metadata: Mapping[str, str]) -> Context | None:
    """Return the context that a call's metadata names; None: it cannot be read."""
    try:
        return propagate.extract(metadata)
    except ValueError:  # such as a text that has no UTF-8
        return None


def otlp() -> Tracing:
    """Return a `Tracing` that sends spans by OTLP over gRPC, in batches, from a thread of its own."""
    provider = TracerProvider(resource=Resource.create({"service.name": "kilolayer"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)
