"""Scrapes: the port on which metrics are offered, as HTTP.

Whoever can reach the port may connect to it, say nothing, or leave in the middle: that costs a thread for a few
seconds, and no line of the log.
"""

import logging
import sys
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, start_http_server

from serving.sockets import bind_error

_LOGGER = logging.getLogger(__name__)


class Handler(WSGIRequestHandler):
    """Answers one connection, and says nothing of it on stderr."""

    timeout = 5.0  # seconds without a byte, after which a peer is let go

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the library's name
        """Nothing: the library would write lines that are not the log's."""


def serve_metrics(registry: CollectorRegistry, host: str, *, port: int) -> tuple[WSGIServer, Thread]:
    """Answer scrapes of `registry` at `host:port` (0: any free one), each in a thread of its own.

    Raises:
        StartupError: the port cannot be had.
    """
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise bind_error("metrics_port", host, port=port) from error
    server.RequestHandlerClass = Handler
    server.handle_error = _note_error
    return server, thread


def _note_error(request: object, client_address: object) -> None:  # noqa: ARG001  the library's names
    """Called in place of the library's, which writes a traceback of many lines to stderr."""
    if isinstance(sys.exception(), OSError):
        _LOGGER.debug("a scrape from %s broke off", client_address, exc_info=True)
    else:
        _LOGGER.exception("a scrape from %s failed", client_address)
