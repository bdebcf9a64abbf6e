"""The limits of HTTP connections."""

import dataclasses
from collections.abc import Callable
from typing import Protocol, TypeAlias


class Timer(Protocol):
    """Something that happens later."""

    def cancel(self) -> None:
        """Prevent it."""
        ...


CallLater: TypeAlias = Callable[[float, Callable[[], None]], Timer]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HttpLimits:
    """What a peer may do. Times are in seconds."""

    max_connections: int
    """Open connections. When another one comes, the one that has waited longest is closed."""

    max_header_bytes: int = 16 << 10
    """Of the request line and the headers."""

    header_s: float = 5.0
    """For the headers: from their first byte, and for those of the first request from the connection."""

    idle_s: float = 60.0
    """From a reply to the next request."""

    body_s: float = 5.0
    """In each such period, `body_bytes` of an incomplete body must arrive."""

    body_bytes: int = 64 << 10

    send_s: float = 10.0
    """In each such period, a peer must receive a part of its reply."""

    linger_s: float = 1.0
    """For a peer to receive a reply after which the connection is closed, although it still sends."""

    discard_bytes: int = 64 << 10
    """Of a body that is not needed. After a refused request with a larger one, the connection is closed."""


class OpenConnections:
    """The open connections of a server. They are compared by identity.

    Args:
        most: how many there may be.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.all: dict[Closable, None] = {}
        self._waiting: dict[Closable, None] = {}  # for a request, the longest first
        self.is_closed = False
        """Whether there is no place for another one, because the server stops."""

    def add(self, connection: "Closable") -> bool:
        """Add a connection that waits for its first request. Return False if there is no place for it."""
        if self.is_closed:
            return False
        if len(self.all) >= self._most:
            oldest = next(iter(self._waiting), None)
            if oldest is None:
                return False
            self.remove(oldest)
            oldest.close()
        self.all[connection] = None
        self.waits(connection)
        return True

    def waits(self, connection: "Closable") -> None:
        """`connection` waits for a request, or for the rest of one that is answered."""
        self._waiting[connection] = None

    def answers(self, connection: "Closable") -> None:
        """`connection` answers a request."""
        self._waiting.pop(connection, None)

    def remove(self, connection: "Closable") -> None:
        """`connection` is closed."""
        self.all.pop(connection, None)
        self._waiting.pop(connection, None)


class Closable:
    """A connection, as `OpenConnections` knows it."""

    def close(self) -> None:
        """Close it without a reply."""
        raise NotImplementedError
