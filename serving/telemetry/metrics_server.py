"""MetricsServer: the HTTP port from which Prometheus scrapes the metrics.

Any program that can reach the port may connect and send nothing, or disconnect early. Slow or aborted scrapes hold a
thread for at most 5 s and are not logged.
"""

import logging
import socket
import sys
import time
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler

from prometheus_client import CollectorRegistry, start_http_server

from serving.sockets import bind_error, join_address

_LOGGER = logging.getLogger(__name__)
_RETRY_S = 0.5  # after a connection could not be accepted


class ScrapeHandler(WSGIRequestHandler):
    """Answers one connection."""

    timeout = 5.0  # seconds without a byte, after which the connection is closed

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the library's name
        """Do nothing: the library would write lines to stderr that are not in the log's format."""


class MetricsServer:
    """Answers scrapes of `collectors` at `host:port` (0: any free one), each in its own thread, until `close`.

    Raises:
        StartupError: the port cannot be bound.
    """

    def __init__(self, collectors: CollectorRegistry, host: str, *, port: int) -> None:
        try:
            self._server, self._thread = start_http_server(port, host, collectors)
        except OSError as error:
            raise bind_error("--metrics-port", host, port=port) from error
        self._server.RequestHandlerClass = ScrapeHandler
        self._server.handle_error = _log_error
        self._server.get_request = self._accept
        self.port = self._server.server_port
        self.url = f"http://{join_address(host, self.port)}/metrics"

    def _accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection. If that fails, wait a moment, because the library tries again immediately."""
        try:
            return self._server.socket.accept()
        except OSError:
            time.sleep(_RETRY_S)
            raise

    def close(self) -> None:
        """Close the port, and wait until it is closed."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _log_error(request: object, client_address: object) -> None:  # noqa: ARG001  the library's names
    """Replaces the library's function, which writes a traceback of many lines to stderr."""
    if isinstance(sys.exception(), OSError):
        _LOGGER.debug("a scrape from %s was aborted", client_address, exc_info=True)
    else:
        _LOGGER.exception("a scrape from %s failed", client_address)
