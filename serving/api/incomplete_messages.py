"""IncompleteMessages: bounds the bytes of unary calls' requests that have not arrived completely.

gRPC keeps what it has received of a request that is being read, and does not tell how much that is. Nearly every
request is complete within milliseconds, and gRPC's own handlers of unary calls read it fastest. Therefore gRPC reads
some requests: as many as can have an eighth of the server's limit. While that many are incomplete, our handlers read
the others. They know the connection: a request that is not complete after `SLOW_S` counts for it with the size of the
largest request until it is. A peer that leaves many requests incomplete reaches the limit of its connection.

Requests of streams are not counted: a stream of a robot waits most of its time for a request that has not begun.
"""

import asyncio
import time
from collections.abc import Callable

from serving.api.open_call import OpenCall

SLOW_S = 0.1


class IncompleteMessages:
    """The unary calls whose requests are being read.

    Args:
        max_bytes: size of the largest request.
        max_held_bytes: limit of the bytes that the server holds.
        clock: monotonic seconds.
    """

    def __init__(self, *, max_bytes: int, max_held_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.read_by_grpc = 0
        """Requests that gRPC reads."""
        self._max_by_grpc = max_held_bytes // 8 // max_bytes
        self._max_bytes = max_bytes
        self._clock = clock
        self._reading: dict[OpenCall, float] = {}  # since when; the oldest first
        self._slow: set[OpenCall] = set()  # those that are counted
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_full(self) -> bool:
        """Whether gRPC reads as many requests as it may."""
        return self.read_by_grpc >= self._max_by_grpc

    def begin(self, call: OpenCall) -> None:
        """The request of `call` is read from now on."""
        self._reading[call] = self._clock()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SLOW_S, self._check_later)

    def end(self, call: OpenCall) -> None:
        """The request of `call` has arrived, or the call has ended."""
        self._reading.pop(call, None)
        if call in self._slow:
            self._slow.remove(call)
            call.release(self._max_bytes)

    def check(self) -> None:
        """Count the requests that have been read for `SLOW_S`. End the calls that exceed their connection's limit."""
        slow_s = self._clock() - SLOW_S
        for call in [call for call, since_s in self._reading.items() if since_s <= slow_s]:
            del self._reading[call]
            if call.hold_incomplete(self._max_bytes):
                self._slow.add(call)

    def _check_later(self) -> None:
        self._timer = None
        self.check()
        if self._reading:
            self._timer = asyncio.get_running_loop().call_later(SLOW_S, self._check_later)
