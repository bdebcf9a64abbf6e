"""OpenTelemetry spans, for those who have it installed and ask for it: one a call, within the caller's trace.

A span is named as the conventions for RPCs say (https://opentelemetry.io/docs/specs/semconv/rpc/) and tells, besides
status and policy, how long the call waited, how long its batches took, and how many rows they had. Where spans go and
which are kept is told by OpenTelemetry's own variables, such as OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_TRACES_SAMPLER.

Only who traces imports this module.
"""

from typing import Any

import grpc
import grpc.aio
from opentelemetry import propagate, trace
from opentelemetry.context import attach
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from serving.batching.queue import InferenceResult


class Span:
    """What is told about one call."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def end(self, policy: str, code: grpc.StatusCode) -> None:
        """The call has ended."""
        self._span.set_attributes({"kilolayer.policy": policy, "rpc.grpc.status_code": code.value[0]})
        if code is not grpc.StatusCode.OK:
            self._span.set_status(trace.StatusCode.ERROR, code.name)
        self._span.end()


class Tracing:
    """The spans of one server.

    Args:
        provider: makes them, and is shut down by `close`.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("kilolayer")

    def begin(self, method: str, context: "grpc.aio.ServicerContext[Any, Any]", *, service: str) -> Span:
        """The span of a call that arrives: a child of what its metadata name (`traceparent`), current in this task."""
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        parent = propagate.extract(metadata)
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
        kind = trace.SpanKind.SERVER
        span = self._tracer.start_span(f"{service}/{method}", parent, kind=kind, attributes=attributes)
        attach(trace.set_span_in_context(span, parent))  # for as long as the task, which serves this call alone
        return Span(span)

    def computed(self, answer: InferenceResult) -> None:
        """The results of this task's call are there."""
        trace.get_current_span().set_attributes(
            {
                "kilolayer.queue_us": round(answer.queue_s * 1e6),
                "kilolayer.compute_us": round(answer.compute_s * 1e6),
                "kilolayer.batch_rows": answer.batch_rows,
            }
        )

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def otlp() -> Tracing:
    """Spans that are sent by OTLP over gRPC, in batches, from a thread of their own."""
    provider = TracerProvider(resource=Resource.create({"service.name": "kilolayer"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)
