"""CancellableRead: a read of gRPC that can be cancelled."""

from collections.abc import Coroutine, Generator
from typing import Any


class CancellableRead:
    """A read that can be cancelled.

    gRPC stores the message at an address inside its own coroutine. If that ended because its task is cancelled, gRPC
    would later write to memory that belongs to something else. Therefore a cancellation does not reach the coroutine,
    which lives as long as this object: until the call has ended.
    """

    __slots__ = ("_read",)

    def __init__(self, read: Coroutine[Any, Any, Any]) -> None:
        self._read = read

    def __await__(self) -> Generator[Any, Any, Any]:
        try:
            while True:
                yield self._read.send(None)
        except StopIteration as end:
            return end.value
