"""HttpTracing: one OpenTelemetry span per HTTP request, within the caller's trace.

Names and attributes follow the conventions for HTTP servers
(https://opentelemetry.io/docs/specs/semconv/http/http-spans/#http-server-span). A request that is refused with 4xx is
no error of the server.

OpenTelemetry is an optional dependency: import this module only if spans are wanted.
"""

import urllib.parse

from opentelemetry import trace

from serving.api.http.events import HttpSpan
from serving.api.http.exchange import HttpError, HttpRequest
from serving.api.http.gateway import find_route
from serving.api.tracing import Tracing

# Of RFC 9110 and RFC 5789. A client can send any other name, which must not become the name of a span.
_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})
_OTHER = "_OTHER"
_CANCELLED = "cancelled"
_SERVER_ERROR = 500


class _Span:
    """The span of one request."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def end(self, status: int | None) -> None:
        if status is not None:
            self._span.set_attribute("http.response.status_code", status)
        if status is None or status >= _SERVER_ERROR:
            self._span.set_attribute("error.type", _CANCELLED if status is None else str(status))
            self._span.set_status(trace.StatusCode.ERROR)
        self._span.end()


class HttpTracing:
    """The spans of the requests of one HTTP port.

    Args:
        tracing: makes them.
        scheme: of the port: http or https.
    """

    def __init__(self, tracing: Tracing, *, scheme: str) -> None:
        self._tracing = tracing
        self._scheme = scheme

    def begin(self, request: HttpRequest) -> HttpSpan:
        """Start the span of a request, current in this task."""
        path, query = _path_and_query(request.target)
        method = request.method if request.method in _METHODS else _OTHER
        route = _route(request)
        attributes = {"http.request.method": method, "url.path": path, "url.scheme": self._scheme}
        if method == _OTHER:
            attributes["http.request.method_original"] = request.method
        if query:
            attributes["url.query"] = query
        if route:
            attributes["http.route"] = route
        name = " ".join(filter(None, ["HTTP" if method == _OTHER else method, route]))
        return _Span(self._tracing.start(name, request.headers, attributes=attributes))


def _route(request: HttpRequest) -> str:
    """Return the template of the request's path; empty: the port does not have it."""
    try:
        return find_route(request).template
    except HttpError:
        return ""


def _path_and_query(target: str) -> tuple[str, str]:
    try:
        parts = urllib.parse.urlsplit(target)
    except ValueError:
        path, _, query = target.partition("?")
        return path, query
    return parts.path, parts.query
