"""The HTTP port of a server: its transport, if the server has one and the extra `http` is installed."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from serving.api.handlers import RpcHandlers
from serving.api.held_bytes import HeldBytes
from serving.api.open_inference.service import OpenInferenceService
from serving.config import ServeConfig
from serving.errors import StartupError

if TYPE_CHECKING:
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
    on_limit: Callable[[], None],
    clock: Callable[[], float] = time.monotonic,
) -> "HttpTransport | None":
    """Return what serves `service` over HTTP; None: the server has no HTTP port.

    Args:
        handlers: made the methods of the service.
        held: the bytes that the server holds.
        max_body_bytes: of a request.
        max_connections: most open connections.
        on_limit: called when a call is ended because its connection holds too many bytes.
        clock: monotonic seconds.

    Raises:
        StartupError: the extra `http` is not installed.
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
    # This is where callers are checked over HTTP: `authorize` is called for each request before its body is read.
    gateway = HttpGateway(service, handlers=handlers, max_body_bytes=max_body_bytes, max_rows=config.max_call_rows)
    return HttpTransport(
        gateway.answer,
        held=held,
        limits=HttpLimits(max_connections=max_connections),
        on_limit=on_limit,
        share_port=config.workers > 1,
        clock=clock,
    )
