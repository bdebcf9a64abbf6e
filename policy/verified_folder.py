"""A folder that is written completely or not at all, with a manifest that shows every later change.

Policies and snapshots are such folders. manifest.json has the size and the SHA-256 of every other file, and a SHA-256
of these entries. The order, in `create`: fill a scratch folder next to the final place; write manifest.json; fsync
every file and folder; read everything back; rename the scratch folder to its final name; fsync the parent folder. A
process that is killed on the way leaves a scratch folder, which `sweep` removes.

A reader either compares the files with the manifest where they are, in `verify`, or takes a `copy`. The copy is for
folders that others may change or that consist of symbolic links, as those of Kubernetes volumes and model stores do.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Collection, Generator, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal

MALFORMED = (ValueError, TypeError, KeyError, AttributeError, RecursionError)  # raised for JSON of another structure
MANIFEST = "manifest.json"
_WRITING, _DELETING, _REPLACED = ".writing-", ".deleting-", ".replaced-"  # prefixes of names that nobody reads
_DIGEST = "digest"
MAX_MANIFEST_BYTES = 1 << 20  # a manifest has a few kilobytes; a damaged one must not fill the memory
_CHUNK_BYTES = 1 << 20
_MAX_NAME_BYTES = 255  # of a file or a folder, on all common file systems
_REMOVALS, _REMOVAL_PAUSE_S = 20, 0.1

Reason = Literal["manifest", "format", "files", "hash"]


def malformation(error: Exception) -> str:
    """Return in plain words what is wrong with JSON for which one of MALFORMED was raised, as a part of a sentence."""
    if isinstance(error, json.JSONDecodeError):
        return f"it is not JSON: {error.msg} in line {error.lineno}, column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return "it is not JSON: it is not UTF-8 text"
    if isinstance(error, KeyError):
        return f"it lacks {error.args[0]!r:.80}"
    if isinstance(error, ValueError):  # ours, or about a number
        return f"{error!s:.200}"
    return "it has another structure than expected"


class DamageError(Exception):
    """A folder whose files are not those that were written. `reason` is one word, `detail` a part of a message."""

    def __init__(self, reason: Reason, detail: str) -> None:
        self.reason: Reason = reason
        self.detail = detail
        super().__init__(reason, detail)

    def __str__(self) -> str:
        return self.detail


def create(
    target: Path,
    *,
    fill: Callable[[Path], None],
    check: Callable[[Path], None],
    format_version: int,
    what: str,
    replace: bool = True,
) -> None:
    """Write the folder `target`; a folder of that name stays in its place until the new one is complete.

    Args:
        fill: writes the files into a scratch folder, which is its argument.
        check: reads the files of the scratch folder back, before the folder gets its name; raises OSError if they are
            not as they should be.
        format_version: of these files, for the manifest.
        what: is written, in a word or two, for error messages.
        replace: whether the new folder replaces a folder of that name. If false, an existing one stays, also one that
            appears while the new folder is written.

    Raises:
        FileExistsError: something of that name exists, and `replace` is false.
        OSError: the disk is full, or the folder cannot be written or read back; the message names it. Nothing is left
            behind, and a folder of that name is as it was.
    """

    def fill_and_list(scratch: Path) -> None:
        fill(scratch)
        write_manifest(scratch, format_version)

    place(target, fill=fill_and_list, check=check, what=what, replace=replace)


def place(
    target: Path,
    *,
    fill: Callable[[Path], None],
    check: Callable[[Path], None],
    what: str,
    replace: bool = True,
) -> None:
    """Write the folder `target` as `create` does, except that `fill` writes the manifest, too.

    Raises:
        OSError: as `create`. Other errors of `fill` and `check` pass through; then, too, nothing is left behind.
    """
    parent = target.parent
    scratch = parent / f"{_WRITING}{target.name}-{uuid.uuid4().hex[:8]}"
    replaced = parent / f"{_REPLACED}{target.name}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        scratch.mkdir()
        fill(scratch)
        _fsync_tree(scratch)
        check(scratch)
        if replace and target.exists():
            target.rename(replaced)
        elif target.exists() or target.is_symlink():
            raise FileExistsError(errno.EEXIST, "it exists, or was made meanwhile")
        scratch.rename(target)  # fails if a folder with files was made in this moment
        fsync(parent)
        if replace:
            _finish_replacement(replaced)
    except BaseException as error:
        _remove_scratch(scratch)
        if replace:
            _finish_replacement(replaced)
        if isinstance(error, OSError):
            raise named(error, f"{what} {target} cannot be written") from error
        raise


def sweep(parent: Path) -> None:
    """Remove what killed processes left in `parent`; bring back a folder whose replacement was never completed."""
    for entry in sorted(parent.iterdir()) if parent.is_dir() else ():
        if entry.name.startswith(_REPLACED):
            _finish_replacement(entry)
        elif entry.name.startswith((_WRITING, _DELETING)):
            _delete(entry)  # what is left of it is swept the next time


def remove(folder: Path) -> None:
    """Remove a folder for everyone at the same moment: rename it, then delete its files.

    A file that cannot be deleted, for example one on NFS that a server still reads, is swept later.
    """
    doomed = folder.with_name(f"{_DELETING}{folder.name}-{uuid.uuid4().hex[:8]}")
    folder.rename(doomed)
    _delete(doomed)


def _delete(entry: Path) -> None:
    """Delete a folder as far as possible, or what stands in the place of one."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            entry.unlink()


def write_manifest(folder: Path, format_version: int) -> None:
    """Write the manifest of all files in `folder`, with a SHA-256 of what it says itself."""
    manifest = {"format": format_version, "files": {name: fingerprint(path) for name, path in files(folder)}}
    manifest |= {_DIGEST: _digest(manifest)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")


def verify(folder: Path, *, format_version: int, belongs: Callable[[str], bool]) -> str:
    """Compare the files in `folder` with its manifest; return the manifest's own SHA-256.

    A symbolic link is followed if it ends in `folder`.

    Args:
        format_version: that the manifest must state.
        belongs: whether a file of this relative name may be in such a folder.

    Raises:
        DamageError: the manifest cannot be read, or a file is missing, foreign, changed, or outside.
        OSError: a file cannot be read.
    """
    return _read(folder, None, root=folder, format_version=format_version, belongs=belongs)


def copy(folder: Path, target: Path, *, root: Path, format_version: int, belongs: Callable[[str], bool]) -> str:
    """Copy the files that the manifest of `folder` names; return the manifest's own SHA-256.

    Each byte is read once, and is hashed as it was read. So the copy has the content that the manifest states,
    whatever happens to `folder` meanwhile. It has at most the size that the manifest states.

    Args:
        folder: a folder, or a link to one. The links in it are followed if they end under `root`.
        target: an empty folder.
        root: `folder`, or a folder that it is in; links in its own path are followed.
        format_version, belongs: as of `verify`.

    Raises:
        DamageError: as `verify`.
        OSError: a file cannot be read or written.
    """
    return _read(folder, target, root=root, format_version=format_version, belongs=belongs)


def parse_manifest(raw: bytes, format_version: int) -> dict[str, tuple[Any, Any]]:
    """Return the size and the SHA-256 of every file, by its relative name, as the manifest `raw` states them.

    Raises:
        DamageError: it cannot be parsed, has another format, or names a file that is not below its folder.
    """
    if not raw.endswith(b"\n"):
        raise DamageError("manifest", f"{MANIFEST} is truncated: it does not end with a newline")
    try:
        manifest = json.loads(raw)
        # Without it, one flipped bit could make another format. Manifests of earlier builds lack it.
        intact = _DIGEST not in manifest or manifest.pop(_DIGEST) == _digest(manifest)
        stated_format = manifest["format"]
        expected = {str(name): (entry["size"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except MALFORMED as error:
        raise DamageError("manifest", f"{MANIFEST} cannot be parsed: {malformation(error)}") from error
    if not intact:
        raise DamageError("manifest", f"{MANIFEST} has changed since it was written")
    if stated_format != format_version:
        detail = f"{MANIFEST} has format {stated_format!r:.80}, but this version reads format {format_version}"
        raise DamageError("format", detail)
    if unknown := sorted(manifest.keys() - {"format", "files"}):
        raise DamageError("manifest", f"{MANIFEST} has the unknown entry {unknown[0]!a:.80}")
    folders = _parents(expected)
    if odd := sorted(name for name in expected if name in folders or not _is_plain_name(name)):
        raise DamageError("files", f"{odd[0]!a:.200} in {MANIFEST} is not the name of a file below it")
    return expected


def _digest(manifest: dict[str, Any]) -> str:
    """Return the SHA-256 of a manifest without its own digest."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


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


def _read(folder: Path, target: Path | None, *, root: Path, format_version: int, belongs: Callable[[str], bool]) -> str:
    """Compare the files in `folder` with its manifest, and copy them into `target` if there is one."""
    # Resolved once, because a link on the way may be replaced by one to other content, as Kubernetes does.
    folder, root = Path(os.path.realpath(folder)), Path(os.path.realpath(root))
    if not folder.is_relative_to(root):
        raise DamageError("files", f"it is a symbolic link to {folder}, outside of {root}")
    raw = _read_manifest(folder, root)
    expected = parse_manifest(raw, format_version)
    present: set[str] = set()
    for name in _names(folder, _parents(expected)):
        if name != MANIFEST and (name not in expected or not belongs(name)):
            raise DamageError("files", f"{name} does not belong to it")
        present.add(name)
    if missing := sorted(expected.keys() - present):
        raise DamageError("files", f"{missing[0]:.200} is missing")
    for name, (size, digest) in expected.items():
        with contextlib.ExitStack() as stack:
            file, actual = stack.enter_context(_opened(folder / name, root, what=name, reason="files"))
            if actual != size:
                raise DamageError("hash", f"{name} has {actual} bytes instead of {size}")
            copied = None
            if target:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                copied = stack.enter_context((target / name).open("xb"))
            if _transfer(file, copied, actual) != digest:
                raise DamageError("hash", f"{name} has changed since it was written")
    return hashlib.sha256(raw).hexdigest()


def _read_manifest(folder: Path, root: Path) -> bytes:
    with _opened(folder / MANIFEST, root, what=MANIFEST, reason="manifest") as (file, size):
        if size > MAX_MANIFEST_BYTES:
            raise DamageError("manifest", f"{MANIFEST} has {size} bytes; a manifest has at most {MAX_MANIFEST_BYTES}")
        return file.read(MAX_MANIFEST_BYTES)


def _is_plain_name(name: str) -> bool:
    path = PurePosixPath(name)
    if str(path) != name or not name.isprintable() or path.is_absolute() or ".." in path.parts:
        return False
    return all(len(part.encode()) <= _MAX_NAME_BYTES for part in path.parts)  # what prints has an encoding


def _parents(names: Collection[str]) -> set[str]:
    return {str(parent) for name in names for parent in PurePosixPath(name).parents}


def _names(folder: Path, parents: Collection[str]) -> Iterator[str]:
    """Yield every entry of `folder` and of the folders `parents` in it, by its relative name, except these folders.

    Links to these folders are followed. So the work is bounded by the manifest, even if links lead in a circle.
    """
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        with os.scandir(folder / inside) as entries:
            for entry in entries:
                name = inside + entry.name
                if name not in parents:
                    yield name
                elif (folder / name).is_dir():
                    waiting.append(f"{name}/")
                else:
                    raise DamageError("files", f"{name} is not a folder")


@contextlib.contextmanager
def _opened(path: Path, root: Path, *, what: str, reason: Reason) -> Generator[tuple[io.BufferedReader, int]]:
    """Open the file at which `path` ends, and yield it with its size.

    The check of where it is and the read are about the same file, even if a link changes between them. Other kinds of
    files are not opened: a pipe would block.

    Raises:
        DamageError: with `reason`: `what` is missing, no plain file, or not under the folder `root`, which is resolved.
    """
    end = Path(os.path.realpath(path))
    try:
        status = end.lstat()
        if not end.is_relative_to(root):
            raise DamageError(reason, f"{what} is a symbolic link to {end}, outside of {root}")
        if not stat.S_ISREG(status.st_mode):
            raise DamageError(reason, f"{what} is not a plain file")
        descriptor = os.open(end, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError) as error:
        problem = "is a symbolic link to nothing" if path.is_symlink() else "is missing"
        raise DamageError(reason, f"{what} {problem}") from error
    with os.fdopen(descriptor, "rb") as file:
        opened = os.fstat(descriptor)
        if not os.path.samestat(opened, status):
            raise DamageError(reason, f"{what} was replaced while it was read")
        yield file, opened.st_size


def _transfer(file: io.BufferedReader, copy: BinaryIO | None, size: int) -> str:
    """Read at most `size` bytes of `file`, write them to `copy` if there is one, and return their SHA-256."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(min(size, _CHUNK_BYTES)))
    while count := file.readinto(buffer[:size]):
        digest.update(buffer[:count])
        if copy:
            copy.write(buffer[:count])
        size -= count
    return digest.hexdigest()


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


def named(error: OSError, what: str) -> OSError:
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
