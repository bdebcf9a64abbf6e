"""The HTTP port of a server: its transport, if the server has one and the extra `http` is installed."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from serving.access.guard import Guard
from serving.access.roles import Role
from serving.access.tls import Certificates
from serving.api.handlers import RpcHandlers
from serving.api.held_bytes import HeldBytes
from serving.api.open_inference.service import OpenInferenceService
from serving.api.rpc import RpcContext, RpcService
from serving.config import ServeConfig
from serving.errors import StartupError
from serving.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from serving.api.http.events import HttpEvents
    from serving.api.http.transport import HttpTransport

_MAX_CONNECTIONS = 1024  # for each, up to 80 KiB may be received in advance
_SHARE = 4  # of the connections that the process may accept, one in so many may be of HTTP


def http_connections(config: ServeConfig, most: int) -> int:
    """Return how many of the `most` connections of the process may be of HTTP."""
    return 0 if config.http_port is None else max(min(most // _SHARE, _MAX_CONNECTIONS), 1)


def http_transport(
    service: OpenInferenceService,
    config: ServeConfig,
    *,
    handlers: RpcHandlers,
    held: HeldBytes,
    max_body_bytes: int,
    max_connections: int,
    metrics: Metrics,
    guard: Guard | None = None,
    certificates: Certificates | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> "HttpTransport | None":
    """Return what serves `service` over HTTP; None: the server has no HTTP port.

    Args:
        handlers: made the methods of the service.
        held: the bytes that the server holds.
        max_body_bytes: of a request.
        max_connections: most open connections.
        metrics: count what is refused.
        guard: decides who may call what; None: anyone may call everything.
        certificates: for TLS; None: plain text.
        clock: monotonic seconds.

    Raises:
        StartupError: the extra `http` is not installed, or OpenSSL refuses the certificates.
    """
    if config.http_port is None:
        return None
    try:
        from serving.api.http.gateway import HttpGateway
        from serving.api.http.limits import HttpLimits
        from serving.api.http.transport import HttpTransport
    except ImportError as error:
        raise StartupError(
            "--http-port needs the extra `http`: pip install -e '.[http]'; or leave out --http-port"
        ) from error
    gateway = HttpGateway(
        service,
        handlers=handlers,
        max_body_bytes=max_body_bytes,
        max_rows=config.max_call_rows,
        authorize=_authorize(service.service(), guard) if guard else None,
    )
    return HttpTransport(
        gateway.answer,
        held=held,
        limits=HttpLimits(max_connections=max_connections),
        events=_events(handlers, metrics, scheme="https" if certificates else "http"),
        certificates=certificates,
        share_port=config.workers > 1,
        clock=clock,
    )


def _events(handlers: RpcHandlers, metrics: Metrics, *, scheme: str) -> "HttpEvents":
    from serving.api.http.events import HttpEvents, Refusal

    counters = {refusal: metrics.http_refused.labels(refusal) for refusal in Refusal}  # shown from the start, with 0
    begin_span = None
    if handlers.tracing:
        from serving.api.http.spans import HttpTracing  # it needs OpenTelemetry

        begin_span = HttpTracing(handlers.tracing, scheme=scheme).begin
    return HttpEvents(
        on_limit=metrics.memory_limit.inc, on_refusal=lambda refusal: counters[refusal].inc(), begin_span=begin_span
    )


def _authorize(service: RpcService, guard: Guard) -> Callable[[RpcContext], RpcContext]:
    """Return what asks `guard` for the role that the method of a call declares, and adds the name of the token."""
    roles = {f"/{service.name}/{name}": method.role for name, method in service.unary.items()}

    def authorize(context: RpcContext) -> RpcContext:
        role = roles[context.method]
        if role is Role.ANYONE:
            return context
        # Values of a repeated header are joined by a comma and a space, which the guard finds malformed.
        headers = context.metadata().items()
        caller = guard.admit(role, headers, method=context.method, peer=context.connection)
        return context._replace(token=caller.token.name)

    return authorize
