"""ReadGate: makes the streams and calls of a connection wait before they read a request.

A stream waits for two reasons, a call only for the first:

* Its connection has no room. It continues when the connection releases bytes, one stream for each release, in the order
  of arrival. Room can also arise because another connection releases bytes; a timer checks that while streams wait. A
  connection that releases nothing for `stalled_s` does not read its replies: its waiting streams fail.
* Its connection sends more than `SLICE_BYTES` within `SLICE_S`. gRPC passes on what arrived in the order of arrival,
  so the requests of a thousand streams would delay the calls of other connections by the time that all of them take.
  From such a connection, the server reads as many requests at a time as it processes within about `SLICE_S`: a request
  that came faster than that lets another stream read, and so does the timer.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from serving.api.held_bytes import Connection
from serving.errors import MemoryLimitError

SLICE_S = 0.002
SLICE_BYTES = 64 << 10


class _Progress(NamedTuple):
    released: int  # bytes, at `since_s`
    since_s: float


class ReadGate:
    """The streams that wait to read.

    Args:
        stalled_s: a connection that has no room and releases nothing for this long has its waiting streams ended.
        clock: monotonic seconds.
    """

    def __init__(self, *, stalled_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._stalled_s = stalled_s
        self.clock = clock
        self._waiting: dict[Connection, deque[asyncio.Future[None]]] = {}
        self._progress: dict[Connection, _Progress] = {}  # of the connections in `_waiting`
        self._timer: asyncio.TimerHandle | None = None

    def is_open(self, connection: Connection) -> bool:
        """Return whether a stream of `connection` may read without waiting."""
        is_slow = connection.slice_bytes < SLICE_BYTES or self.clock() - connection.slice_s > SLICE_S
        return is_slow and connection.has_room and connection not in self._waiting

    async def wait(self, connection: Connection) -> None:
        """Wait until a stream of `connection` may read.

        Raises:
            MemoryLimitError: the peer reads no replies.
        """
        loop = asyncio.get_running_loop()
        while True:
            waiter = loop.create_future()
            self._waiting.setdefault(connection, deque()).append(waiter)
            self._progress.setdefault(connection, _Progress(connection.released, self.clock()))
            self._timer = self._timer or loop.call_later(SLICE_S, self._check_later)
            await waiter
            if connection.has_room:
                return

    def received(self, connection: Connection, size: int, *, read_s: float) -> None:
        """Count a request of `size` bytes that a stream of `connection` has waited for since `read_s`."""
        now_s = self.clock()
        if now_s - connection.slice_s > SLICE_S:
            connection.slice_s, connection.slice_bytes = now_s, 0
        connection.slice_bytes += size
        if now_s - read_s < SLICE_S and connection in self._waiting and connection.has_room:
            self._wake(connection)

    def release(self, connection: Connection, size: int) -> None:
        """Release bytes of `connection`. If this makes room, let one of its waiting streams read."""
        had_room = connection.has_room
        connection.release(size)
        if not had_room and connection in self._waiting and connection.has_room:
            self._wake(connection)

    def check(self) -> None:
        """Let a stream of each connection with room read, and end the waiting streams of stalled connections."""
        now_s = self.clock()
        for connection in list(self._waiting):
            released, since_s = self._progress[connection]
            if connection.has_room:
                self._wake(connection)
            elif connection.released != released:
                self._progress[connection] = _Progress(connection.released, now_s)
            elif now_s - since_s >= self._stalled_s:
                self._end(connection)

    def _check_later(self) -> None:
        self._timer = None
        self.check()
        if self._waiting:
            self._timer = asyncio.get_running_loop().call_later(SLICE_S, self._check_later)

    def _wake(self, connection: Connection) -> None:
        """Let the first waiting stream of `connection` read."""
        waiters = self._waiting[connection]
        while waiters:
            waiter = waiters.popleft()
            if not waiter.done():  # else its call has ended
                waiter.set_result(None)
                break
        if not waiters:
            self._forget(connection)

    def _end(self, connection: Connection) -> None:
        for waiter in self._waiting[connection]:
            if not waiter.done():
                waiter.set_exception(
                    MemoryLimitError(
                        f"this connection completed no requests and read no replies for {self._stalled_s:g} s while the"
                        f" server held {connection.held >> 20} MB for it"
                    )
                )
        self._forget(connection)

    def _forget(self, connection: Connection) -> None:
        del self._waiting[connection], self._progress[connection]
