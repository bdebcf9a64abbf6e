"""The files of a version on disk: whether all are there, and whether they have changed."""

import contextlib
from pathlib import Path
from typing import TypeAlias

from policy.published import MANIFEST

Files: TypeAlias = frozenset[tuple[str, int, int]]
"""The name, the size and the time of change, in nanoseconds, of every file of a version."""


def look(folder: Path) -> Files:
    """Return the files in `folder`; none if it cannot be read."""
    found: set[tuple[str, int, int]] = set()
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # it has just been removed
            status = path.stat()
            found.add((str(path.relative_to(folder)), status.st_size, status.st_mtime_ns))
    return frozenset(found)


def is_complete(files: Files) -> bool:
    """Return whether a version has all its files: whoever copies one writes its manifest last."""
    return any(name == MANIFEST for name, _, _ in files)
