"""manifest.json of an exported policy: compare the size and the SHA-256 of every file with those that were written.

Files that the manifest does not name are neither read nor refused: a model hub may add its own. Symbolic links are
followed, because a hub's cache consists of them.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Any

from kilolayer.errors import InvalidExport

MANIFEST = "manifest.json"
_FORMAT_VERSION = 1
_CHUNK_BYTES = 1 << 20
_MAX_MANIFEST_BYTES = 1 << 20  # a manifest has a few kilobytes; a damaged one must not fill the memory
_MALFORMED = (ValueError, TypeError, KeyError, AttributeError, RecursionError)  # raised for JSON of another structure


def verify(folder: Path) -> frozenset[str]:
    """Return the names of the files in `folder` that are as they were written: all that its manifest names.

    Raises:
        InvalidExport: the manifest is missing or damaged, or a file is missing or has changed.
    """
    entries = _entries(folder)
    for name, (size, digest) in entries.items():
        _verify_file(folder, name, size=size, digest=digest)
    return frozenset(entries)


def invalid(folder: Path, problem: str) -> InvalidExport:
    """Return the exception for a folder that is not used because of `problem`."""
    return InvalidExport(f"{folder}: {problem}; copy the folder again, or export the policy again")


def _entries(folder: Path) -> dict[str, tuple[int, str]]:
    """Return the size and the SHA-256 of every file, by its name, as the manifest states them."""
    try:
        with (folder / MANIFEST).open("rb") as file:
            raw = file.read(_MAX_MANIFEST_BYTES)
    except OSError as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise _not_an_export(folder, f"{MANIFEST} {reason}") from error
    try:
        manifest: dict[str, Any] = json.loads(raw)
        stated = manifest.pop("digest")
        is_intact = stated == hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
        version = manifest["format"]
        entries = {str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
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


def _verify_file(folder: Path, name: str, *, size: int, digest: str) -> None:
    found, actual = hashlib.sha256(), 0
    try:
        with (folder / name).open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                found.update(chunk)
                actual += len(chunk)
    except OSError as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise invalid(folder, f"{name} {reason}") from error
    if actual != size:
        raise invalid(folder, f"{name} has {actual} bytes instead of {size}")
    if found.hexdigest() != digest:
        raise invalid(folder, f"{name} has changed since it was written")


def _not_an_export(folder: Path, problem: str) -> InvalidExport:
    return InvalidExport(f"{folder} is not an exported policy: {problem}; export one with kilolayer-policy export")
