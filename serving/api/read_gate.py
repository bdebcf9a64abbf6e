"""ReadGate: makes calls wait while their connection has no room for another request.

A waiting call continues when its connection releases bytes, one call for each release, in the order of arrival. Room
can also arise because another connection releases bytes; a timer checks that while calls wait. A connection that
releases nothing for `stalled_s` does not read its replies: its waiting calls fail.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from serving.api.held_bytes import Connection
from serving.errors import MemoryLimitError

CHECK_S = 0.1  # between two checks whether another connection made room


class _Progress(NamedTuple):
    released: int  # bytes, at `since_s`
    since_s: float


class ReadGate:
    """The calls that wait to read.

    Args:
        stalled_s: a connection that has no room and releases nothing for this long has its waiting calls ended.
        clock: monotonic seconds.
    """

    def __init__(self, *, stalled_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._stalled_s = stalled_s
        self._clock = clock
        self._waiting: dict[Connection, deque[asyncio.Future[None]]] = {}
        self._progress: dict[Connection, _Progress] = {}  # of the connections in `_waiting`
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self, connection: Connection) -> None:
        """Wait until `connection` has room.

        Raises:
            MemoryLimitError: its peer reads no replies.
        """
        loop = asyncio.get_running_loop()
        while not connection.has_room:
            waiter = loop.create_future()
            self._waiting.setdefault(connection, deque()).append(waiter)
            self._progress.setdefault(connection, _Progress(connection.released, self._clock()))
            self._timer = self._timer or loop.call_later(CHECK_S, self._check_later)
            await waiter

    def release(self, connection: Connection, size: int) -> None:
        """Release bytes of `connection`, and let one of its waiting calls read if there is room."""
        connection.release(size)
        if self._waiting and connection in self._waiting and connection.has_room:
            self._wake(connection)

    def check(self) -> None:
        """Let one call of each connection with room read, and end the waiting calls of stalled connections."""
        now_s = self._clock()
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
            self._timer = asyncio.get_running_loop().call_later(CHECK_S, self._check_later)

    def _wake(self, connection: Connection) -> None:
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
                        f"this connection read no replies for {self._stalled_s:g} s while the server held"
                        f" {connection.held >> 20} MB for it; read replies while sending requests"
                    )
                )
        self._forget(connection)

    def _forget(self, connection: Connection) -> None:
        del self._waiting[connection], self._progress[connection]
