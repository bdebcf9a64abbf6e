"""Standard output of the command: all of the text arrives, or the exit code says that it did not."""

import contextlib
import os
import select
import sys


class OutputError(Exception):
    """Standard output cannot be written. The message is one line."""


def write(text: str) -> None:
    """Write `text` to standard output, and wait as long as the reader needs.

    A reader that ends early, such as `| head`, is no error. Characters that the encoding lacks become escapes.

    Raises:
        OutputError: the text cannot be written, for example because the disk is full.
    """
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison]  # the descriptor is closed
        raise OutputError("standard output is closed")
    encoding = sys.stdout.encoding or "utf-8"
    data = text.encode(encoding, "backslashreplace")
    descriptor = None
    with contextlib.suppress(OSError, ValueError):  # also io.UnsupportedOperation
        descriptor = sys.stdout.fileno()
    try:
        sys.stdout.flush()
        if descriptor is None:
            sys.stdout.write(data.decode(encoding))
        else:
            _write_all(descriptor, data)
    except BrokenPipeError:
        return
    except OSError as error:
        raise OutputError(f"standard output cannot be written: {error.strerror or error}") from error


def _write_all(descriptor: int, data: bytes) -> None:
    """Write without the stream's buffer, which would write again when the interpreter ends."""
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:  # another process has made the terminal or pipe non-blocking
            select.select([], [descriptor], [])
