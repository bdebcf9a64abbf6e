"""The limits of HTTP connections."""

import dataclasses
from collections.abc import Callable
from typing import Protocol, TypeAlias


class Timer(Protocol):
    """A scheduled action."""

    def cancel(self) -> None:
        """Cancel it."""
        ...


CallLater: TypeAlias = Callable[[float, Callable[[], None]], Timer]


class OneTimer:
    """The timer of a connection, which waits for one thing at a time.

    Args:
        call_later: starts a timer.
    """

    def __init__(self, call_later: CallLater) -> None:
        self._call_later = call_later
        self._timer: Timer | None = None

    def set(self, delay_s: float, action: Callable[[], None]) -> None:
        """Call `action` in `delay_s`, in place of the action that was set before."""
        self.clear()
        self._timer = self._call_later(delay_s, action)

    def clear(self) -> None:
        """Cancel the action, if there is one."""
        if self._timer:
            self._timer.cancel()
            self._timer = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class HttpLimits:
    """What a peer may do. Times are in seconds."""

    max_connections: int
    """Open connections. When another one comes, one that waits for its peer is dropped, see `OpenConnections`."""

    max_header_bytes: int = 16 << 10
    """Of the request line and the headers."""

    header_s: float = 5.0
    """For the headers: from their first byte; for those of the first request, from the start of the connection."""

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

    A connection is busy, waits for its peer, or lingers after its last reply. When there are too many, a new one takes
    the place of another: of the first that lingers; if none does, of the one that has waited longest for a request, for
    a body, or for its peer to receive a reply. A flood of waiting connections therefore ends its own earlier ones, and
    not those of clients that send and receive without pauses.

    Args:
        most: how many there may be.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.all: dict[Droppable, None] = {}
        self._waiting: dict[Droppable, None] = {}  # the longest first
        self._lingering: dict[Droppable, None] = {}
        self.is_closed = False
        """Whether new connections are refused, because the server stops."""

    def add(self, connection: "Droppable") -> bool:
        """Add a connection that waits for its first request. Return False if it is refused."""
        if self.is_closed:
            return False
        if len(self.all) >= self._most:
            dropped = next(iter(self._lingering or self._waiting), None)
            if dropped is None:
                return False
            self.remove(dropped)
            dropped.drop()
        self.all[connection] = None
        self.waits(connection)
        return True

    def waits(self, connection: "Droppable") -> None:
        """`connection` waits for its peer from now on. No effect if it is waiting already, or is not open."""
        if connection in self.all:
            self._waiting[connection] = None

    def answers(self, connection: "Droppable") -> None:
        """`connection` computes a reply, so it is not dropped."""
        self._waiting.pop(connection, None)

    def lingers(self, connection: "Droppable") -> None:
        """`connection` has sent its last reply."""
        if connection in self.all:
            self._waiting.pop(connection, None)
            self._lingering[connection] = None

    def remove(self, connection: "Droppable") -> None:
        """`connection` is closed."""
        for group in (self.all, self._waiting, self._lingering):
            group.pop(connection, None)


class Droppable:
    """A connection, as `OpenConnections` knows it."""

    def drop(self) -> None:
        """Close it without a reply, also if its peer receives nothing."""
        raise NotImplementedError
