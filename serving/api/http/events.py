"""HttpEvents: what a server counts and traces of its HTTP connections."""

import dataclasses
import enum
from collections.abc import Callable
from typing import Protocol

from serving.api.http.exchange import HttpRequest


class Refusal(enum.StrEnum):
    """Why a request or a connection is refused for a reason that only HTTP has; a metric label."""

    MALFORMED = "malformed"
    WEB_PAGE = "web_page"
    PATH = "path"
    METHOD = "method"
    TOO_SLOW = "too_slow"
    BODY_TOO_LARGE = "body_too_large"
    COMPRESSED = "compressed"
    HEADERS_TOO_LARGE = "headers_too_large"
    TOO_MANY_CONNECTIONS = "too_many_connections"
    DROPPED = "dropped"
    STOPPING = "stopping"


_BY_STATUS = {
    403: Refusal.WEB_PAGE,
    404: Refusal.PATH,
    405: Refusal.METHOD,
    408: Refusal.TOO_SLOW,
    413: Refusal.BODY_TOO_LARGE,
    415: Refusal.COMPRESSED,
    431: Refusal.HEADERS_TOO_LARGE,
}


def refusal(status: int) -> Refusal:
    """Return why a request gets an error with this status from HTTP itself."""
    return _BY_STATUS.get(status, Refusal.MALFORMED)  # 400, 501 and 505


class HttpSpan(Protocol):
    """The span of one request."""

    def end(self, status: int | None) -> None:
        """End it with the status of the reply; None: the connection ended before there was one."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class HttpEvents:
    """Functions that a connection calls when something happens."""

    on_limit: Callable[[], None] = lambda: None
    """A call is ended because its connection holds too many bytes."""

    on_refusal: Callable[[Refusal], None] = lambda _refusal: None
    """A request or a connection is refused."""

    begin_span: Callable[[HttpRequest], HttpSpan] | None = None
    """A request has arrived, without its body. Called in the task that answers it. None: there are no spans."""
