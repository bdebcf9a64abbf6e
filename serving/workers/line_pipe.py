"""LinePipe: writes whole lines into a pipe that may be full."""

from typing import BinaryIO, cast


class LinePipe:
    """The writing end of a pipe.

    Args:
        pipe: without a buffer, and blocking or not.
    """

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe = pipe
        self._rest = b""  # of the line before; a pipe that is nearly full takes a part of a line of over 4 KiB

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._pipe.fileno()

    def write(self, line: bytes) -> bool:
        """Write `line`, after the rest of the line before. Return False, without any of `line`, if the pipe is full.

        If the pipe takes only a part of `line`, the rest is written first next time.

        Raises:
            OSError: nothing can read the pipe any more.
        """
        if self._rest:
            self._write(self._rest)
        return not self._rest and self._write(line)

    def _write(self, line: bytes) -> bool:
        """Write at least a part of `line`, and keep the rest. Return False if the pipe is full."""
        written = cast("int | None", self._pipe.write(line))  # None: the pipe is full
        if written is None:
            return False
        self._rest = line[written:]
        return True
