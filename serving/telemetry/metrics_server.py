"""MetricsServer: the HTTP port for probes, at /healthz, and for Prometheus, at /metrics.

Any program that can reach the port may connect and send nothing, or one byte now and then. Each connection has 5 s in
total. At most 64 are open; when another one comes, the oldest is closed. So such programs hold few threads, and scrapes
are answered. Slow or aborted scrapes are not logged.
"""

import contextlib
import io
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import choose_encoder

from serving.sockets import TcpAddress, bind_error

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

_LOGGER = logging.getLogger(__name__)
_RETRY_S = 0.5  # after a connection could not be accepted
_CHECK_S = 0.5  # between two checks for connections that have had their time


class ScrapeHandler(WSGIRequestHandler):
    """Answers one connection."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the library's name
        """Do nothing: the library would write lines to stderr that are not in the log's format."""

    def get_stderr(self) -> io.StringIO:
        """Return a place that is not read: the library would write tracebacks to stderr."""
        return io.StringIO()


class ScrapeServer(ThreadingMixIn, WSGIServer):
    """Answers each connection in a thread of its own, and closes those that take too long."""

    daemon_threads = True
    request_queue_size = 128  # connections that wait to be accepted; the system's usual number
    max_connections = 64
    max_s = 5.0  # for one connection

    def server_bind(self) -> None:
        """Bind without the library's question for the host's full name: it takes seconds if no name server answers."""
        TCPServer.server_bind(self)
        host, self.server_port = self.server_address[:2]
        self.server_name = str(host)
        self.setup_environ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._opened: dict[socket.socket, float] = {}  # monotonic seconds, the oldest first
        self._lock = threading.Lock()
        super().__init__(*args, **kwargs)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection. If that fails, wait a moment, because the library tries again immediately."""
        try:
            return self.socket.accept()
        except OSError:
            time.sleep(_RETRY_S)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection, after the oldest one was closed if there are too many."""
        with self._lock:
            if len(self._opened) >= self.max_connections:
                self._end(next(iter(self._opened)))
            self._opened[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection. The library calls this at the end of its thread."""
        with self._lock:
            self._opened.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """End connections that have had their time. The library calls this every `_CHECK_S`."""
        too_old_s = time.monotonic() - self.max_s
        with self._lock:
            for connection in [each for each, opened_s in self._opened.items() if opened_s <= too_old_s]:
                self._end(connection)

    def _end(self, connection: socket.socket) -> None:
        """Let the thread of a connection end: it reads and writes no more. Holds the lock."""
        del self._opened[connection]
        with contextlib.suppress(OSError):  # the peer was faster
            connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  the library's names
        """Replace the library's method, which writes a traceback of many lines to stderr."""
        if isinstance(sys.exception(), OSError):
            _LOGGER.debug("a scrape from %s was aborted", client_address, exc_info=True)
        else:
            _LOGGER.exception("a scrape from %s failed", client_address)


class MetricsServer:
    """Answers at `host:port` (0: any free one) until `close`.

        /healthz    200 while `problem()` is empty; 503 otherwise, with the problem in the second line
        /metrics    the metrics of `collectors`; 404 if there are none
        others      404

    Args:
        collectors: what /metrics shows; None: nothing.
        host: address to listen on.
        port: port to listen on.
        problem: why the server does not serve now, on one line; empty if it does; called from other threads.

    Raises:
        StartupError: the port cannot be bound.
    """

    def __init__(
        self, collectors: CollectorRegistry | None, host: str, *, port: int, problem: Callable[[], str]
    ) -> None:
        try:
            address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            server_class = type("_Server", (ScrapeServer,), {"address_family": address_family})
            app = _app(collectors, problem)
            self._server = make_server(host, port, app, server_class=server_class, handler_class=ScrapeHandler)
        except (OSError, UnicodeError) as error:  # UnicodeError: the host is not a valid name
            raise bind_error("--metrics-port", TcpAddress(host, port)) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_CHECK_S,), name="metrics", daemon=True
        )
        self._thread.start()
        self.port = self._server.server_port
        self._url = f"http://{TcpAddress(host, self.port)}"
        self._has_metrics = collectors is not None

    def addresses(self) -> dict[str, str]:
        """Return the addresses by name: `health`, and `metrics` unless off."""
        metrics = {"metrics": f"{self._url}/metrics"} if self._has_metrics else {}
        return {"health": f"{self._url}/healthz"} | metrics

    def close(self) -> None:
        """Close the port, and wait until it is closed."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _app(collectors: CollectorRegistry | None, problem: Callable[[], str]) -> "WSGIApplication":
    metrics = None if collectors is None else make_wsgi_app(collectors)

    def answer(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics" and metrics:
            return _scraped(metrics, environ, start_response)
        status, reason = "404 Not Found", ""
        if path == "/healthz":
            reason = problem()
            status = "503 Service Unavailable" if reason else "200 OK"
        start_response(status, [("Content-Type", "text/plain"), ("Cache-Control", "no-store")])
        return [f"{status}\n".encode(), f"{reason}\n".encode() if reason else b""]

    return answer


def _scraped(
    metrics: "WSGIApplication", environ: "WSGIEnvironment", start_response: "StartResponse"
) -> Iterable[bytes]:
    """Answer a scrape: 400 if the library cannot read its Accept header, 500 if a metric cannot be read."""
    try:
        choose_encoder(environ.get("HTTP_ACCEPT", ""))
    except (TypeError, ValueError):
        return _failure("400 Bad Request", "the Accept header cannot be read", start_response)
    try:
        return metrics(environ, start_response)
    except Exception:
        _LOGGER.exception("a scrape failed")
        return _failure("500 Internal Server Error", "a metric cannot be read; see the log", start_response)


def _failure(status: str, reason: str, start_response: "StartResponse") -> Iterable[bytes]:
    start_response(status, [("Content-Type", "text/plain")])
    return [f"{reason}\n".encode()]
