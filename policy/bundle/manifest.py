"""manifest.json: the size and SHA-256 of every file of a bundle, and which names are versions and files of one."""

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

# 1 had neither actuator kinds nor statistics; the probes of 2 had neither sampled actions nor energies
FORMAT_VERSION = 3
MALFORMED = (ValueError, TypeError, KeyError, AttributeError, RecursionError)  # raised for JSON of another structure
_NAME = "manifest.json"
_MAX_BYTES = 1 << 20  # a manifest has a few kilobytes; a damaged one must not fill the memory
_NOT_PLAIN = "a symbolic link or not a plain file"

Reason = Literal["missing", "manifest", "files", "hash", "spec", "arrays", "probes"]


_ADVICE: dict[Reason, str] = {"missing": "choose the folder of a published version, whose name is a number"}


class BundleError(Exception):
    """A bundle that must not be used.

    `reason` is one word for metrics. `problem` and `advice` are parts of the message without full stops, so that a
    caller with better advice can write a sentence of its own.
    """

    def __init__(self, path: Path, reason: Reason, detail: str) -> None:
        self.path = path
        self.reason: Reason = reason
        self.problem = f"{path} is not a usable policy ({reason}): {detail.rstrip('.')}"
        self.advice = _ADVICE.get(reason, "copy it again from where it was published, or use another version")
        super().__init__(f"{self.problem}; {self.advice}")


def versions(root: Path) -> list[int]:
    """Return the versions published in `root`, oldest first, unverified; none if there is no such folder."""
    if not root.is_dir():
        return []
    return sorted(int(entry.name) for entry in root.iterdir() if entry.is_dir() and is_version(entry.name))


def is_version(name: str) -> bool:
    """Return whether `name` is a version: decimal digits without a leading zero, so that a version has one name."""
    return name.isascii() and name.isdigit() and name == str(int(name))


def write(folder: Path) -> None:
    """Write the manifest of all files in `folder`."""
    manifest = {"format": FORMAT_VERSION, "files": {name: fingerprint(path) for name, path in files(folder)}}
    (folder / _NAME).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")


def verify(path: Path) -> str:
    """Compare the files of the bundle at `path` with its manifest; return the manifest's own SHA-256.

    Raises:
        BundleError: the manifest cannot be read, or a file is missing, foreign, changed, or a symbolic link.
    """
    manifest_path = path / _NAME
    if not manifest_path.is_symlink() and not manifest_path.exists():
        raise BundleError(path, "manifest", f"{_NAME} is missing")
    if not _is_plain_file(manifest_path):
        raise BundleError(path, "manifest", f"{_NAME} is {_NOT_PLAIN}")
    if (size := manifest_path.stat().st_size) > _MAX_BYTES:
        raise BundleError(path, "manifest", f"{_NAME} has {size} bytes; a manifest has at most {_MAX_BYTES}")
    raw = manifest_path.read_bytes()
    if not raw.endswith(b"\n"):
        raise BundleError(path, "manifest", f"{_NAME} is truncated: it does not end with a newline")
    try:
        manifest = json.loads(raw)
        stated_format = manifest["format"]
        expected = {str(name): (entry["size"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except MALFORMED as error:
        raise BundleError(path, "manifest", f"{_NAME} cannot be parsed: {error!r}") from error
    if stated_format != FORMAT_VERSION:
        detail = f"{_NAME} has format {stated_format!r:.80}, but this version reads format {FORMAT_VERSION}"
        raise BundleError(path, "manifest", detail)
    present = {name: file for name, file in files(path) if name != _NAME}
    if not_plain := sorted(name for name, file in present.items() if not _is_plain_file(file)):
        raise BundleError(path, "files", f"{not_plain[0]} is {_NOT_PLAIN}")
    if missing := sorted(expected.keys() - present.keys()):
        raise BundleError(path, "files", f"{missing[0]:.200} is missing")
    if foreign := sorted(name for name in present if name not in expected or not _is_of_a_bundle(name)):
        raise BundleError(path, "files", f"{foreign[0]} does not belong to it")
    for name, (size, digest) in expected.items():
        if present[name].stat().st_size != size:
            raise BundleError(path, "hash", f"{name} has {present[name].stat().st_size} bytes instead of {size}")
        if _sha256(present[name]) != digest:
            raise BundleError(path, "hash", f"{name} has changed since it was published")
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_plain_file(path: Path) -> bool:
    """Return whether `path` is a file and no symbolic link. It may have other hard links, as those of a backup."""
    return stat.S_ISREG(path.lstat().st_mode)


def _is_of_a_bundle(name: str) -> bool:
    return name in {"policy.json", "probes.npz"} or name.startswith("params/")
