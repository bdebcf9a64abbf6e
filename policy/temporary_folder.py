"""A temporary folder that is removed at its end, or, if its process was killed, when the next one is made.

A process that is killed cannot remove its folder. So each process holds a lock on its folder, which the system releases
when the process ends, however it ends. Making a folder removes those of the same prefix that have no lock.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path


@contextlib.contextmanager
def temporary_folder(prefix: str) -> Generator[Path]:
    """Make a folder that is removed at the end of the context; remove those left behind.

    Args:
        prefix: of its name. Only folders of one purpose have it.

    Raises:
        OSError: it cannot be made.
    """
    root = Path(tempfile.gettempdir())
    for left in root.glob(f"{prefix}*"):
        _remove_if_left(left)
    folder, lock = _make(root, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # another process may still write to it
        os.close(lock)


def _make(root: Path, prefix: str) -> tuple[Path, int]:
    """Make a folder in `root`; return it with the descriptor that holds its lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
        with contextlib.suppress(FileNotFoundError):  # another process removed it before it was locked
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)


def _remove_if_left(folder: Path) -> None:
    """Remove `folder` if it is this user's and no process holds its lock."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return  # a link, another user's, or just removed
    try:
        if os.fstat(lock).st_uid == os.geteuid():
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass  # its process runs
    finally:
        os.close(lock)
