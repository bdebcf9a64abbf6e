"""The standard streams of a run: whatever becomes of them, the run goes on.

The reader of a pipe may end (`| head`) or read no more, the disk of a log file may be full, a terminal may disappear or
be stopped, and an encoding may lack a character. None of this is a reason to end hours of training, or to wait.
"""

import collections
import contextlib
import io
import os
import select
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from typing import TextIO

_LAST_STANDARD_DESCRIPTOR = 2
_PATIENCE_S = 1.0  # how long a print waits for its text to be written
_MOST_HELD = 2**20  # characters that are kept for a stream that takes none


@contextlib.contextmanager
def tolerant(*, announce: bool = True) -> Generator[None]:
    """Replace `sys.stdout` and `sys.stderr` by streams that raise no errors, see `TolerantStream`.

    A stream that is closed counts as one without a reader. Within another `tolerant`, this does nothing.

    Args:
        announce: whether a line on standard error says that standard output failed.
    """
    if isinstance(sys.stdout, TolerantStream):
        yield
        return
    _occupy_closed_descriptors()
    before = sys.stdout, sys.stderr
    with contextlib.ExitStack() as opened:
        nowhere = opened.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
        errors = TolerantStream(sys.stderr or nowhere)
        output = TolerantStream(sys.stdout or nowhere, warn=errors if announce else None)
        sys.stdout, sys.stderr = output, errors
        try:
            yield
        finally:
            output.flush()
            errors.flush()
            sys.stdout, sys.stderr = before


class TolerantStream(io.TextIOBase):
    """Writes to `stream` from a thread until a write fails; then to nowhere.

    A flush, and a write that ends a line, wait at most `_PATIENCE_S`. While the stream takes nothing, they do not wait,
    and text beyond `_MOST_HELD` characters is dropped; once the stream takes text again, it says how much is missing.

    Args:
        stream: where to write.
        warn: gets one line if a write fails; None: no line.
    """

    def __init__(self, stream: TextIO, *, warn: io.TextIOBase | None = None) -> None:
        self._stream, self._warn = stream, warn
        self._descriptor = _descriptor(stream)
        self._texts = collections.deque[str]()
        self._held = 0  # characters that are not written yet
        self._dropped = 0
        self._changed = threading.Condition()
        self._is_writing = self._is_stuck = self._has_failed = False

    def write(self, text: str, /) -> int:
        """Write `text`, with "?" for characters that the encoding lacks."""
        with self._changed:
            if self._has_failed or not text:
                return len(text)
            if self._held + len(text) > _MOST_HELD:
                self._dropped += len(text)
                return len(text)
            self._texts.append(text)
            self._held += len(text)
            if not self._is_writing:
                self._is_writing = True
                threading.Thread(target=self._write_all, name="output", daemon=True).start()
        if "\n" in text:
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Wait until everything is written, unless the stream takes nothing."""
        with self._changed:
            if not self._is_stuck:
                self._is_stuck = not self._changed.wait_for(lambda: not self._held, timeout=_PATIENCE_S)

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return not self._has_failed and self._stream.isatty()

    def fileno(self) -> int:
        """Return the stream's file descriptor."""
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The stream's encoding."""
        return self._stream.encoding or "utf-8"

    def _write_all(self) -> None:
        """Write until there is nothing left. This is the thread, which may wait for the stream for ever."""
        while text := self._next():
            try:
                self._put(text.encode(self.encoding, "replace"))
            except (OSError, ValueError) as error:  # ValueError: the stream was closed
                self._give_up(error)
            else:
                with self._changed:
                    self._held -= len(text)
                    self._is_stuck = False
                    self._changed.notify_all()

    def _next(self) -> str:
        """Return the next text to write, or an empty one if the thread may end."""
        with self._changed:
            if self._dropped:
                note = (
                    f"\n[{self._dropped:,} characters of output are missing here: they could not be written in time]\n"
                )
                self._texts.append(note)
                self._held, self._dropped = self._held + len(note), 0
            self._is_writing = bool(self._texts)
            text = "".join(self._texts)
            self._texts.clear()
            return text

    def _put(self, data: bytes) -> None:
        if self._descriptor is None:
            self._stream.write(data.decode(self.encoding))
            self._stream.flush()
            return
        while data:  # without the stream's own buffer, which would write again when the interpreter ends
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # another process has made the terminal or pipe non-blocking
                select.select([], [self._descriptor], [])

    def _give_up(self, error: Exception) -> None:
        if self._warn:  # first, so that the line is there when the print that waits for this returns
            print(f"warning: standard output cannot be written ({error}); the run goes on without it", file=self._warn)
        with self._changed:
            self._texts.clear()
            self._held, self._dropped, self._has_failed = 0, 0, True
            self._changed.notify_all()


def _descriptor(stream: TextIO) -> int | None:
    """Return the file descriptor behind `stream`, with nothing left in its buffer; None if it has no descriptor."""
    with contextlib.suppress(OSError, ValueError):  # also io.UnsupportedOperation
        descriptor = stream.fileno()
        with contextlib.suppress(OSError):  # writing to the descriptor will fail, too
            stream.flush()
        return descriptor
    return None


def _occupy_closed_descriptors() -> None:
    """Open the null device in place of closed standard streams, so that no file of the run gets their descriptors."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _LAST_STANDARD_DESCRIPTOR:
        pass
    os.close(descriptor)
