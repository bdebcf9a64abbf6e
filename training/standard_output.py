"""The standard streams of a run: if they can no longer be written, the run goes on.

The reader of a pipe may end (`| head`), the disk of a log file may be full, a terminal may disappear, and an encoding
may lack a character. None of this is a reason to end hours of training, so no write of these streams raises an error.
"""

import contextlib
import io
import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import TextIO

_LAST_STANDARD_DESCRIPTOR = 2


@contextlib.contextmanager
def tolerant() -> Generator[None]:
    """Let `sys.stdout` and `sys.stderr` give up at their first failed write, instead of raising an error.

    Standard output then says so on standard error, once. A stream that is closed counts as one without a reader.
    """
    _occupy_closed_descriptors()
    before = sys.stdout, sys.stderr
    with contextlib.ExitStack() as opened:
        nowhere = opened.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
        sys.stdout = TolerantStream(sys.stdout or nowhere, name="standard output")
        sys.stderr = TolerantStream(sys.stderr or nowhere)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


class TolerantStream(io.TextIOBase):
    """Writes to `stream` until a write fails; then to nowhere.

    Args:
        stream: where to write.
        name: of the stream, for the line on standard error when it fails; empty: no such line.
    """

    def __init__(self, stream: TextIO, *, name: str = "") -> None:
        self._stream, self._name, self._failed = stream, name, False

    def write(self, text: str, /) -> int:
        """Write `text`, with "?" for characters that the encoding lacks."""
        if not self._failed:
            encoding = self._stream.encoding or "utf-8"
            try:
                self._stream.write(text.encode(encoding, "replace").decode(encoding))
            except OSError as error:
                self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        if not self._failed:
            try:
                self._stream.flush()
            except OSError as error:
                self._give_up(error)

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return not self._failed and self._stream.isatty()

    def fileno(self) -> int:
        """Return the stream's file descriptor."""
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The stream's encoding."""
        return self._stream.encoding or "utf-8"

    def _give_up(self, error: OSError) -> None:
        self._failed = True
        # What the stream has buffered would fail again when the interpreter ends, and change the exit code.
        with contextlib.suppress(io.UnsupportedOperation):  # a stream without a descriptor has no such buffer
            descriptor = os.open(os.devnull, os.O_WRONLY)
            os.dup2(descriptor, self._stream.fileno())
            os.close(descriptor)
        if self._name:
            print(f"warning: {self._name} cannot be written ({error}); the run goes on without it", file=sys.stderr)


def _occupy_closed_descriptors() -> None:
    """Open the null device in place of closed standard streams, so that no file of the run gets their descriptors."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _LAST_STANDARD_DESCRIPTOR:
        pass
    os.close(descriptor)
