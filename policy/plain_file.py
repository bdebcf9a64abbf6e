"""Open a plain file that a user names. A pipe is refused, because to open one without a writer would block."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def opened(path: Path) -> BinaryIO:
    """Open a plain file, or a link to one, for reading.

    Raises:
        OSError: it cannot be opened, or is a pipe, a device or a folder; the message names it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise OSError(errno.EINVAL, "not a plain file", str(path))
