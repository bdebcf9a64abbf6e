"""manifest.json of an exported policy: compare the size and the SHA-256 of every file with those that were written.

Files that the manifest does not name are neither read nor refused: a model hub may add its own. Symbolic links are
followed, because a hub's cache consists of them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from kilolayer.errors import InvalidExport

MANIFEST = "manifest.json"
_FORMAT_VERSION = 1
_CHUNK_BYTES = 1 << 20
_MAX_MANIFEST_BYTES = 1 << 20  # a manifest has a few kilobytes; a damaged one must not fill the memory
_MALFORMED = (ValueError, TypeError, KeyError, AttributeError, RecursionError)  # raised for JSON of another structure


class Entry(NamedTuple):
    """A file as it was written."""

    size: int  # bytes
    sha256: str


def verify(folder: Path) -> dict[str, Entry]:
    """Return the files in `folder` by their names, after comparing each with what its manifest says of it.

    Raises:
        InvalidExport: the manifest is missing or damaged, or a file is missing, no plain file, or has changed.
    """
    entries = _entries(folder)
    for name, entry in entries.items():
        _verify_file(folder, name, entry)
    return entries


def content(folder: Path, name: str, entry: Entry) -> bytes:
    """Return the content of a file, which may have changed since `verify`.

    Raises:
        InvalidExport: it is missing, no plain file, or has changed.
    """
    read: list[bytes] = []
    _verify_file(folder, name, entry, read=read)
    return b"".join(read)


def invalid(folder: Path, problem: str) -> InvalidExport:
    """Return the exception for a folder that is not used because of `problem`."""
    return InvalidExport(f"{folder}: {problem}; copy the folder again, or export the policy again")


def _entries(folder: Path) -> dict[str, Entry]:
    """Return the size and the SHA-256 of every file, by its name, as the manifest states them."""
    try:
        with _opened(folder / MANIFEST) as file:
            raw = file.read(_MAX_MANIFEST_BYTES)
    except OSError as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise _not_an_export(folder, f"{MANIFEST} {reason}") from error
    try:
        manifest: dict[str, Any] = json.loads(raw)
        stated = manifest.pop("digest")
        is_intact = stated == hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
        version = manifest["format"]
        entries = {
            str(name): Entry(int(entry["size"]), str(entry["sha256"])) for name, entry in manifest["files"].items()
        }
    except _MALFORMED as error:
        raise invalid(folder, f"{MANIFEST} cannot be parsed") from error
    if not is_intact or not raw.endswith(b"\n"):
        raise invalid(folder, f"{MANIFEST} has changed since it was written")
    if version != _FORMAT_VERSION:
        found = f"{MANIFEST} has format {version!r:.80}, and this client reads format {_FORMAT_VERSION} of an export"
        raise _not_an_export(folder, found)
    for name in entries:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name:
            raise invalid(folder, f"{name!a:.200} in {MANIFEST} is not the name of a file below it")
    return entries


def _opened(path: Path) -> BinaryIO:
    """Open a plain file: a pipe would block. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise OSError(errno.EINVAL, "it is no plain file")


def _verify_file(folder: Path, name: str, entry: Entry, *, read: list[bytes] | None = None) -> None:
    """Compare a file with `entry`; append its content to `read` if there is one. Raises InvalidExport."""
    found, actual = hashlib.sha256(), 0
    try:
        with _opened(folder / name) as file:
            while chunk := file.read(_CHUNK_BYTES):
                found.update(chunk)
                actual += len(chunk)
                if read is not None and actual <= entry.size:
                    read.append(chunk)
    except OSError as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise invalid(folder, f"{name} {reason}") from error
    if actual != entry.size:
        raise invalid(folder, f"{name} has {actual} bytes instead of {entry.size}")
    if found.hexdigest() != entry.sha256:
        raise invalid(folder, f"{name} has changed since it was written")


def _not_an_export(folder: Path, problem: str) -> InvalidExport:
    return InvalidExport(f"{folder} is not an exported policy: {problem}; export one with kilolayer-policy export")
