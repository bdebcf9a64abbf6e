"""The files of a version on disk: whether all are there, and whether they have changed."""

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from policy.published import MANIFEST

Files: TypeAlias = frozenset[tuple[str, str, int, int]]
"""The name, the inode or the tag of the content, the size and the time of change, in ns, of every file of a version."""

MAX_FILES = 10_000  # far more than a version has; a link may lead to a folder with many more


def scan(folder: Path) -> Files:
    """Return the files in `folder`; none if it cannot be read. Symbolic links are followed."""
    found: set[tuple[str, str, int, int]] = set()
    for path in itertools.islice(_paths(folder), MAX_FILES):
        with contextlib.suppress(OSError):  # it has just been removed, or is a link to nothing
            status = path.stat()
            found.add((str(path.relative_to(folder)), str(status.st_ino), status.st_size, status.st_mtime_ns))
    return frozenset(found)


def is_complete(files: Files) -> bool:
    """Return whether a version has all its files: its manifest is copied last.

    Of very many files, only some are listed. Such a version counts as complete: reading it shows what is wrong.
    """
    return len(files) >= MAX_FILES or any(name == MANIFEST for name, *_ in files)


def _paths(folder: Path) -> Iterator[Path]:
    """Yield everything below `folder`. A folder to which several links lead is entered once."""
    waiting, entered = [folder], set[str]()
    while waiting:
        parent = waiting.pop()
        end = os.path.realpath(parent)
        if end in entered:
            continue
        entered.add(end)
        with contextlib.suppress(OSError):  # it has just been removed
            for path in parent.iterdir():
                yield path
                if path.is_dir():
                    waiting.append(path)
