"""What native libraries write to stderr, line by line: gRPC says there, and nowhere else, why a handshake failed.

Descriptor 2 becomes a pipe, which a thread reads. Python's own log goes to the former stderr. The pipe never blocks a
native thread: lines that do not fit into it are lost. So is the last line of a library that aborts the process.
"""

import os
import sys
import threading
from collections.abc import Callable

_STDERR = 2
_MAX_BYTES = 65536  # of a line; the rest of a longer one counts as another line

_former: int | None = None  # the descriptor of the former stderr


def capture(take: Callable[[str], None]) -> None:
    """Call `take` with each line, in a thread. No effect if the machine has no thread for it, or if called before."""
    global _former  # noqa: PLW0603  a process has one stderr
    if _former is not None:
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        threading.Thread(target=_read, args=(reading, take), name="native lines", daemon=True).start()
    except RuntimeError:
        os.close(reading)
        os.close(writing)
        return
    _former = os.dup(_STDERR)
    encoding = sys.stderr.encoding
    os.dup2(writing, _STDERR)
    os.close(writing)
    sys.stderr = os.fdopen(_former, "w", buffering=1, encoding=encoding, errors="backslashreplace", closefd=False)


def stderr() -> int | None:
    """Return the descriptor that a new process takes as its stderr; None: this process's own one."""
    return _former


def _read(descriptor: int, take: Callable[[str], None]) -> None:
    left = b""
    while chunk := os.read(descriptor, _MAX_BYTES):
        *lines, left = (left + chunk).split(b"\n")
        if len(left) >= _MAX_BYTES:
            lines, left = [*lines, left], b""
        for line in lines:
            take(line.decode(errors="backslashreplace"))
