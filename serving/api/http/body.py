"""RequestBody: the body of a request while it arrives, with its limits."""

import asyncio
from collections.abc import Callable

from serving.api.http.exchange import HttpError
from serving.api.open_inference.json_request import MAX_JSON_BYTES
from serving.errors import MemoryLimitError

# Each chunk costs the event loop as much as some hundred bytes do.
_CHUNKS = 64  # of any size
_CHUNK_BYTES = 256  # on average, of further ones


class RequestBody:
    """The body of a request while it arrives.

    Args:
        max_bytes: a larger one fails.
        hold: counts the bytes that have arrived; may raise a MemoryLimitError.
    """

    def __init__(self, max_bytes: int, hold: Callable[[int], None]) -> None:
        self._max_bytes = max_bytes
        self._hold = hold
        self._content = bytearray()  # one for all parts: a list of small ones would take 60 times what is counted
        self._chunks = 0
        self._size_before = 0  # at the beginning of the present period
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Has a result once the body is complete, or the error for which it is refused."""

    def add(self, part: bytes | bytearray, *, begins_chunk: bool) -> None:
        """Add what has arrived.

        Args:
            begins_chunk: whether `part` is the beginning of a chunk, of a request whose body comes in chunks.
        """
        size = len(self._content) + len(part)
        self._chunks += begins_chunk
        if size > self._max_bytes:
            self.fail(too_large(self._max_bytes))
            return
        if self._chunks > _CHUNKS + size // _CHUNK_BYTES:
            self.fail(
                HttpError(400, f"the chunks of the body are too small; send at least {_CHUNK_BYTES} bytes in each")
            )
            return
        try:
            self._hold(len(part))
        except MemoryLimitError as error:
            self.fail(error)
            return
        self._content += part

    def is_slow(self, least_bytes: int) -> bool:
        """Return whether fewer than `least_bytes` have arrived since the last call."""
        before, self._size_before = self._size_before, len(self._content)
        return len(self._content) - before < least_bytes

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
        content, self._content = self._content, bytearray()
        return bytes(content)


def too_large(max_bytes: int) -> HttpError:
    """Return the error for a body with more than `max_bytes`."""
    advice = "send binary tensors, or fewer rows" if max_bytes == MAX_JSON_BYTES else "send fewer rows"
    return HttpError(413, f"the body of this request may have at most {max_bytes} bytes; {advice}")
