"""A folder that is written completely or not at all, with a manifest that shows every later change.

Policies and snapshots are such folders. The order, in `create`: fill a scratch folder next to the final place; write
manifest.json, which has the size and the SHA-256 of every other file; fsync every file and folder; read everything
back; rename the scratch folder to its final name; fsync the parent folder. A process that is killed on the way leaves a
scratch folder, which `sweep` removes.
"""

import errno
import hashlib
import json
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

MALFORMED = (ValueError, TypeError, KeyError, AttributeError, RecursionError)  # raised for JSON of another structure
MANIFEST = "manifest.json"
_WRITING, _DELETING, _REPLACED = ".writing-", ".deleting-", ".replaced-"  # prefixes of names that nobody reads
_MAX_BYTES = 1 << 20  # a manifest has a few kilobytes; a damaged one must not fill the memory
_NOT_PLAIN = "a symbolic link or not a plain file"
_REMOVALS, _REMOVAL_PAUSE_S = 20, 0.1

Reason = Literal["manifest", "format", "files", "hash"]


class DamageError(Exception):
    """A folder whose files are not those that were written. `reason` is one word, `detail` a part of a message."""

    def __init__(self, reason: Reason, detail: str) -> None:
        self.reason: Reason = reason
        self.detail = detail
        super().__init__(reason, detail)

    def __str__(self) -> str:
        return self.detail


def create(
    target: Path, *, fill: Callable[[Path], None], check: Callable[[Path], None], format_version: int, what: str
) -> None:
    """Write the folder `target`; a folder of that name stays in its place until the new one is complete.

    Args:
        fill: writes the files into a scratch folder, which is its argument.
        check: reads the files of the scratch folder back, before the folder gets its name; raises OSError if they are
            not as they should be.
        format_version: of these files, for the manifest.
        what: is written, in a word or two, for error messages.

    Raises:
        OSError: the disk is full, or the folder cannot be written or read back; the message names it. Nothing is left
            behind, and a folder of that name is as it was.
    """
    parent = target.parent
    scratch = parent / f"{_WRITING}{target.name}-{uuid.uuid4().hex[:8]}"
    replaced = parent / f"{_REPLACED}{target.name}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        scratch.mkdir()
        fill(scratch)
        write_manifest(scratch, format_version)
        _fsync_tree(scratch)
        check(scratch)
        if target.exists():
            target.rename(replaced)
        scratch.rename(target)
        fsync(parent)
        _finish_replacement(replaced)
    except BaseException as error:
        _remove_scratch(scratch)
        _finish_replacement(replaced)
        if isinstance(error, OSError):
            raise _named(error, f"{what} {target} cannot be written") from error
        raise


def sweep(parent: Path) -> None:
    """Remove what killed processes left in `parent`; bring back a folder whose replacement was never completed."""
    for entry in sorted(parent.iterdir()) if parent.is_dir() else ():
        if entry.name.startswith(_REPLACED):
            _finish_replacement(entry)
        elif entry.name.startswith((_WRITING, _DELETING)):
            shutil.rmtree(entry, ignore_errors=True)  # what is left of it is swept the next time


def remove(folder: Path) -> None:
    """Remove a folder for everyone at the same moment: rename it, then delete its files.

    A file that cannot be deleted, for example one on NFS that a server still reads, is swept later.
    """
    doomed = folder.with_name(f"{_DELETING}{folder.name}-{uuid.uuid4().hex[:8]}")
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def write_manifest(folder: Path, format_version: int) -> None:
    """Write the manifest of all files in `folder`."""
    manifest = {"format": format_version, "files": {name: fingerprint(path) for name, path in files(folder)}}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")


def verify(folder: Path, *, format_version: int, belongs: Callable[[str], bool]) -> str:
    """Compare the files in `folder` with its manifest; return the manifest's own SHA-256.

    Args:
        format_version: that the manifest must state.
        belongs: whether a file of this relative name may be in such a folder.

    Raises:
        DamageError: the manifest cannot be read, or a file is missing, foreign, changed, or a symbolic link.
        OSError: a file cannot be read.
    """
    raw = _read_manifest(folder)
    try:
        manifest = json.loads(raw)
        stated_format = manifest["format"]
        expected = {str(name): (entry["size"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except MALFORMED as error:
        raise DamageError("manifest", f"{MANIFEST} cannot be parsed: {error!r}") from error
    if stated_format != format_version:
        detail = f"{MANIFEST} has format {stated_format!r:.80}, but this version reads format {format_version}"
        raise DamageError("format", detail)
    present = {name: file for name, file in files(folder) if name != MANIFEST}
    if not_plain := sorted(name for name, file in present.items() if not _is_plain_file(file)):
        raise DamageError("files", f"{not_plain[0]} is {_NOT_PLAIN}")
    if missing := sorted(expected.keys() - present.keys()):
        raise DamageError("files", f"{missing[0]:.200} is missing")
    if foreign := sorted(name for name in present if name not in expected or not belongs(name)):
        raise DamageError("files", f"{foreign[0]} does not belong to it")
    for name, (size, digest) in expected.items():
        if present[name].stat().st_size != size:
            raise DamageError("hash", f"{name} has {present[name].stat().st_size} bytes instead of {size}")
        if _sha256(present[name]) != digest:
            raise DamageError("hash", f"{name} has changed since it was written")
    return hashlib.sha256(raw).hexdigest()


def files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield every entry below `folder` that is not a folder, by its relative name; links are not followed."""
    for parent, folders, names in os.walk(folder):
        for name in (*names, *(entry for entry in folders if (Path(parent) / entry).is_symlink())):
            path = Path(parent) / name
            yield path.relative_to(folder).as_posix(), path


def fingerprint(path: Path) -> dict[str, Any]:
    """Return the size and the SHA-256 of a file, as the manifest has them."""
    return {"size": path.stat().st_size, "sha256": _sha256(path)}


def fsync(path: Path) -> None:
    """Force a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_manifest(folder: Path) -> bytes:
    path = folder / MANIFEST
    if not path.is_symlink() and not path.exists():
        raise DamageError("manifest", f"{MANIFEST} is missing")
    if not _is_plain_file(path):
        raise DamageError("manifest", f"{MANIFEST} is {_NOT_PLAIN}")
    if (size := path.stat().st_size) > _MAX_BYTES:
        raise DamageError("manifest", f"{MANIFEST} has {size} bytes; a manifest has at most {_MAX_BYTES}")
    raw = path.read_bytes()
    if not raw.endswith(b"\n"):
        raise DamageError("manifest", f"{MANIFEST} is truncated: it does not end with a newline")
    return raw


def _remove_scratch(scratch: Path) -> None:
    """Remove the folder of a failed attempt. Repeat until it is gone: Orbax may still be writing to it."""
    for _ in range(_REMOVALS):
        shutil.rmtree(scratch, ignore_errors=True)
        if not scratch.exists():
            return
        time.sleep(_REMOVAL_PAUSE_S)


def _finish_replacement(replaced: Path) -> None:
    """Remove a folder that was replaced. If the new one did not get its name, give the name back instead."""
    target = replaced.with_name(replaced.name.removeprefix(_REPLACED))
    if replaced.exists() and target.exists():
        remove(replaced)
    elif replaced.exists():
        replaced.rename(target)


def _named(error: OSError, what: str) -> OSError:
    """Return the error with a message that begins with `what`."""
    if error.errno is None:
        return OSError(f"{what}: {error}")
    return OSError(error.errno, f"{what}: {error.strerror}")


def unreadable(detail: str) -> OSError:
    """Return the error for files that do not read back as they were written."""
    return OSError(errno.EIO, f"it does not read back as it was written: {detail}")


def _fsync_tree(root: Path) -> None:
    """Force every file and folder below `root`, and `root` itself, to disk."""
    for folder, _, names in os.walk(root):
        for name in (*names, "."):
            fsync(Path(folder) / name)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_plain_file(path: Path) -> bool:
    """Return whether `path` is a file and no symbolic link. It may have other hard links, as those of a backup."""
    return stat.S_ISREG(path.lstat().st_mode)
