"""RequestBody: the body of a request while it arrives, with its limits."""

import asyncio
from collections.abc import Callable

from serving.api.http.exchange import HttpError
from serving.api.open_inference.json_request import MAX_JSON_BYTES
from serving.errors import MemoryLimitError


class RequestBody:
    """The body of a request while it arrives.

    Args:
        max_bytes: a larger one fails.
        hold: counts the bytes that have arrived; may raise a MemoryLimitError.
    """

    def __init__(self, max_bytes: int, hold: Callable[[int], None]) -> None:
        self._max_bytes = max_bytes
        self._hold = hold
        self._parts: list[bytes | bytearray] = []
        self._size = 0  # bytes that have arrived
        self._size_before = 0  # at the beginning of the present period
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Has a result once the body is complete, or the error for which it is refused."""

    def add(self, part: bytes | bytearray) -> None:
        """Add what has arrived."""
        self._size += len(part)
        if self._size > self._max_bytes:
            self.fail(too_large(self._max_bytes))
            return
        try:
            self._hold(len(part))
        except MemoryLimitError as error:
            self.fail(error)
            return
        self._parts.append(part)

    def is_slow(self, least_bytes: int) -> bool:
        """Return whether fewer than `least_bytes` have arrived since the last call."""
        before, self._size_before = self._size_before, self._size
        return self._size - before < least_bytes

    def complete(self) -> None:
        """Nothing more arrives."""
        if not self.done.done():
            self.done.set_result(None)

    def fail(self, error: Exception) -> None:
        """Refuse the request with `error`."""
        if not self.done.done():
            self.done.set_exception(error)

    def content(self) -> bytes:
        """Return the body, once."""
        parts, self._parts = self._parts, []
        return b"".join(parts)


def too_large(max_bytes: int) -> HttpError:
    """Return the error for a body with more than `max_bytes`."""
    advice = "send binary tensors, or fewer rows" if max_bytes == MAX_JSON_BYTES else "send fewer rows"
    return HttpError(413, f"the body of this request may have at most {max_bytes} bytes; {advice}")
