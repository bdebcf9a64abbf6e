"""The temporary folder into which workers write their metrics, and the removal of folders that were left behind.

A supervisor that is killed cannot remove its folder. So each supervisor holds a lock on its folder, which the system
releases when the process ends, however it ends. At its start a supervisor removes the folders that have no lock.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from serving.errors import StartupError

_PREFIX = "kilolayer-workers-"


@contextmanager
def metrics_folder() -> Generator[Path]:
    """Make a folder for the workers' metrics, which is removed at the end of the context; remove those left behind.

    Raises:
        StartupError: it cannot be made.
    """
    try:
        root = Path(tempfile.gettempdir())
        for folder in root.glob(f"{_PREFIX}*"):
            _remove_if_left(folder)
        folder, lock = _make(root)
    except OSError as error:
        raise StartupError(
            f"cannot make a temporary folder for the workers' metrics ({error}); set TMPDIR to a writable folder with"
            " free space"
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # a worker that ends late may still write
        os.close(lock)


def _make(root: Path) -> tuple[Path, int]:
    """Make a folder in `root`; return it with the descriptor that holds its lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
        with contextlib.suppress(FileNotFoundError):  # another supervisor removed it before it was locked
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
        pass  # its supervisor runs
    finally:
        os.close(lock)
