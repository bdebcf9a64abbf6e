"""MetricsServer: the HTTP port for probes, at /healthz, and for Prometheus, at /metrics.

Any program that can reach the port may connect and send nothing, or disconnect early. Slow or aborted scrapes hold a
thread for at most 5 s and are not logged.
"""

import logging
import socket
import sys
import time
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from threading import Thread
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from serving.sockets import TcpAddress, bind_error

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

_LOGGER = logging.getLogger(__name__)
_RETRY_S = 0.5  # after a connection could not be accepted


class ScrapeHandler(WSGIRequestHandler):
    """Answers one connection."""

    timeout = 5.0  # seconds without a byte, after which the connection is closed

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the library's name
        """Do nothing: the library would write lines to stderr that are not in the log's format."""


class _Server(ThreadingMixIn, WSGIServer):
    """Answers each connection in a thread of its own."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  the library's names
        """Replace the library's method, which writes a traceback of many lines to stderr."""
        if isinstance(sys.exception(), OSError):
            _LOGGER.debug("a scrape from %s was aborted", client_address, exc_info=True)
        else:
            _LOGGER.exception("a scrape from %s failed", client_address)


class MetricsServer:
    """Answers at `host:port` (0: any free one), each connection in its own thread, until `close`.

        /healthz    200 while `is_ready()`, 503 otherwise
        /metrics    the metrics of `collectors`; 404 if there are none
        others      404

    Args:
        collectors: what /metrics shows; None: nothing.
        host: address to listen on.
        port: port to listen on.
        is_ready: whether the server's health is SERVING; called from other threads.

    Raises:
        StartupError: the port cannot be bound.
    """

    def __init__(
        self, collectors: CollectorRegistry | None, host: str, *, port: int, is_ready: Callable[[], bool]
    ) -> None:
        try:
            address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            server_class = type("_Server", (_Server,), {"address_family": address_family})
            app = _app(collectors, is_ready)
            self._server = make_server(host, port, app, server_class=server_class, handler_class=ScrapeHandler)
        except (OSError, UnicodeError) as error:  # UnicodeError: the host is not a valid name
            raise bind_error("--metrics-port", TcpAddress(host, port)) from error
        self._server.get_request = self._accept
        self._thread = Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()
        self.port = self._server.server_port
        self._url = f"http://{TcpAddress(host, self.port)}"
        self._has_metrics = collectors is not None

    def addresses(self) -> dict[str, str]:
        """Return the addresses by name: `health`, and `metrics` unless off."""
        metrics = {"metrics": f"{self._url}/metrics"} if self._has_metrics else {}
        return {"health": f"{self._url}/healthz"} | metrics

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


def _app(collectors: CollectorRegistry | None, is_ready: Callable[[], bool]) -> "WSGIApplication":
    metrics = None if collectors is None else make_wsgi_app(collectors)

    def answer(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics" and metrics:
            return metrics(environ, start_response)
        status = "404 Not Found"
        if path == "/healthz":
            status = "200 OK" if is_ready() else "503 Service Unavailable"
        start_response(status, [("Content-Type", "text/plain"), ("Cache-Control", "no-store")])
        return [f"{status}\n".encode()]

    return answer
