"""What an HTTP connection and the code that answers its requests exchange, and errors as replies."""

from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple, Protocol, TypeAlias

from serving.api.open_inference.json_reply import to_json
from serving.errors import ServingError, Status

JSON = ("content-type", "application/json")
BINARY = ("content-type", "application/octet-stream")
CLOSE = ("connection", "close")

# The codes of https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto, by gRPC's number.
_HTTP_STATUSES = {
    Status.INVALID_ARGUMENT: 400,
    Status.DEADLINE_EXCEEDED: 504,
    Status.NOT_FOUND: 404,
    Status.PERMISSION_DENIED: 403,
    Status.RESOURCE_EXHAUSTED: 429,
    Status.FAILED_PRECONDITION: 400,
    Status.ABORTED: 409,
    Status.UNAVAILABLE: 503,
    Status.UNAUTHENTICATED: 401,
}
_INTERNAL = 500
# Not with 429: a client that repeats a request sends an old observation. 503 means the whole server, or another one.
_HEADERS = {401: ("www-authenticate", "Bearer"), 503: ("retry-after", "1")}
_OF_GRPC = "grpc-"


class HttpRequest(NamedTuple):
    """A request without its body."""

    method: str
    target: str  # path and query, as received
    headers: Mapping[str, str]  # names in lower case; values of a repeated name are joined by commas

    def __repr__(self) -> str:
        """Show no headers, so that no log or traceback can hold a token."""
        return f"HttpRequest(method={self.method!r}, target={self.target!r})"


class HttpReply(NamedTuple):
    """A reply, complete."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class Exchange(Protocol):
    """The call that a request begins."""

    @property
    def peer(self) -> str:
        """The name of its connection."""
        ...

    async def read_body(self, max_bytes: int) -> bytes:
        """Receive the body of the request.

        Raises:
            HttpError: it is larger than `max_bytes`, malformed or too slow.
            MemoryLimitError: the server holds too many bytes for the connection.
        """
        ...

    def hold(self, size: int) -> None:
        """Count bytes that are held until the call ends. Raises MemoryLimitError if they are too many."""
        ...


Answer: TypeAlias = Callable[[HttpRequest, Exchange], Awaitable[HttpReply]]
"""Answers a request. An `HttpError` or a `ServingError` that it raises becomes the reply."""


class HttpError(Exception):
    """A request that is refused for a reason that only HTTP has."""

    def __init__(self, status: int, message: str, *headers: tuple[str, str]) -> None:
        super().__init__(status, message, *headers)  # all of them, so that it can be copied
        self.reply = error_reply(status, message, *headers)

    def __str__(self) -> str:
        return str(self.args[1])


def error_reply(status: int, message: str, *headers: tuple[str, str]) -> HttpReply:
    """Return a reply with the error `message`."""
    common = (JSON, *filter(None, [_HEADERS.get(status)]))
    return HttpReply(status, (*common, *headers), to_json({"error": message}))


def failure_reply(error: ServingError) -> HttpReply:
    """Return the reply for an error of a call: the status that fits that of gRPC, and the reason as a header."""
    headers = [(name, value) for name, value in error.trailers if not name.startswith(_OF_GRPC)]
    return error_reply(_HTTP_STATUSES.get(error.status, _INTERNAL), str(error), *headers)
