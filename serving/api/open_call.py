"""OpenCall: counts the bytes that are held for one open call, and ends the call if its connection holds too many."""

import asyncio
from collections import deque
from collections.abc import Callable

from serving.api.held_bytes import Connection
from serving.api.read_gate import ReadGate
from serving.errors import MemoryLimitError

CALL_BYTES = 16 << 10  # an estimate, not measured, of what gRPC and the event loop need for a call
STREAM_BYTES = 64 << 10  # that gRPC may receive in advance for a stream that is not read from


class OpenCall:
    """A call from its arrival until gRPC has sent its status. Constructed in the task that runs the call.

    Args:
        connection: of its peer.
        gate: makes the calls of a connection without room wait.
        size: bytes that are held while it is open.
        on_limit: called when the call is ended because its connection holds too many bytes.
    """

    __slots__ = ("_connection", "_gate", "_held", "_on_limit", "_read_s", "_requests", "_task", "failure", "reading")

    def __init__(self, connection: Connection, gate: ReadGate, *, size: int, on_limit: Callable[[], None]) -> None:
        self._connection = connection
        self._gate = gate
        self._on_limit = on_limit
        self._held = size
        self._requests: deque[int] = deque()  # sizes of a stream's requests that have no reply yet
        self._read_s = 0.0  # when its present read began
        self._task = asyncio.current_task()
        self.failure: MemoryLimitError | None = None
        """Why its task is cancelled, if the caller is still there."""
        self.reading: object = None
        """The read that gRPC may still write to; kept until the call ends."""
        connection.hold(size)

    def hold(self, size: int) -> None:
        """Count bytes that are held until the call ends.

        Raises:
            MemoryLimitError: the connection holds too many bytes.
        """
        self._held += size
        self._connection.hold(size)
        self._check()

    def hold_incomplete(self, size: int) -> bool:
        """Count `size` bytes for a request that is incomplete. If the connection may not hold them, end the call.

        Return whether they are counted.
        """
        if not self._connection.fits(size):
            self._fail(self._limit_error(size))
            return False
        self._held += size
        self._connection.hold(size)
        return True

    def release(self, size: int) -> None:
        """Count `size` fewer bytes."""
        self._held -= size
        self._gate.release(self._connection, size)

    def receive(self, size: int) -> None:
        """Count a request of a stream; it is held until its reply is sent. Errors as of `hold`."""
        self._requests.append(size)
        self._gate.received(self._connection, size, read_s=self._read_s)
        self.hold(size)

    def sent(self, size: int) -> None:
        """Count that a reply of a stream, which was held, is sent, and that its request is no longer needed."""
        if self._requests:
            size += self._requests.popleft()
        self.release(size)

    async def may_read(self) -> None:
        """Wait until a stream may read another request.

        Raises:
            MemoryLimitError: the peer reads no replies.
        """
        if not self._gate.is_open(self._connection):
            await self.wait_for_room()
        self._read_s = self._gate.clock()

    @property
    def has_room(self) -> bool:
        """Whether a unary call may read its request."""
        return self._connection.has_room

    async def wait_for_room(self) -> None:
        """Wait until a unary call may read its request. Errors as of `may_read`."""
        try:
            await self._gate.wait(self._connection)
        except MemoryLimitError as error:
            self._fail(error)
            raise

    def end(self, _context: object) -> None:
        """Release what is held for the call, which has ended. gRPC passes its context."""
        self._gate.release(self._connection, self._held)
        self._held, self._task, self.reading = 0, None, None

    def _check(self) -> None:
        if self._connection.is_over:
            error = self._limit_error()
            self._fail(error)
            raise error

    def _limit_error(self, more: int = 0) -> MemoryLimitError:
        held_mb = self._connection.held + more >> 20
        return MemoryLimitError(
            f"the server holds {held_mb} MB of requests and replies for this connection, which is too much"
        )

    def _fail(self, error: MemoryLimitError) -> None:
        """End the call for `error`, even while a reply waits to be sent."""
        self._on_limit()
        self.failure = error
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
