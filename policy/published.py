"""Which versions of a policy a folder holds, and what their policy.json says. Imports no JAX.

Only `policy.bundle.read` verifies a version. What is read here serves to choose one.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from policy.spec import check_name
from policy.verified_folder import MALFORMED, MANIFEST, malformation

# 1 had neither actuator kinds nor statistics; the probes of 2 had neither sampled actions nor energies
FORMAT_VERSION = 3
DESCRIPTION = "policy.json"
STAY = "eval/stay"
MAX_DESCRIPTION_BYTES = 1 << 24  # far more than a description has; a damaged one must not fill the memory
_MAX_DIGITS = 18
_WHAT_TO_NAME = "name a published version such as runs/first/policies/2000, or the folder of all versions"


class DescriptionError(Exception):
    """A policy.json that cannot be read, or that is not the published one. The message is a part of a sentence."""


class MissingVersionError(Exception):
    """A folder that is no published version and does not hold the one that is wanted. The message is one line."""


def versions(root: Path) -> list[int]:
    """Return the versions published in `root`, oldest first, unverified; none if there is no such folder.

    Raises:
        OSError: the folder cannot be read.
    """
    if not root.is_dir():
        return []
    return sorted(int(entry.name) for entry in root.iterdir() if entry.is_dir() and is_version(entry.name))


def find(folder: Path, version: int | None = None) -> Path:
    """Return the published version that `folder` is or holds, unverified.

    Args:
        folder: a published version, or a folder of versions.
        version: which one; None: the newest.

    Raises:
        MissingVersionError: there is none, or not this one. The message is one line.
    """
    if folder.is_dir() and not is_version(folder.name):
        folder = folder.resolve() if (folder / MANIFEST).exists() else folder  # "." or a link such as "latest"
    held = versions(folder)
    if is_version(folder.name) and folder.is_dir() and not held:
        if version not in {None, int(folder.name)}:
            raise MissingVersionError(f"{folder} is version {folder.name}, and version {version} is asked for")
        return folder
    if not held:
        raise MissingVersionError(f"{folder} {_no_version(folder)}")
    if version is not None and version not in held:
        raise MissingVersionError(f"{folder} has no version {version}; it has {', '.join(map(str, held))}")
    return folder / str(held[-1] if version is None else version)


def _no_version(folder: Path) -> str:
    """Say why `folder` has no version, and what to use instead."""
    if not folder.is_dir():
        return f"{'is not a folder' if folder.exists() else 'does not exist'}; {_WHAT_TO_NAME}"
    if versions(folder / "policies"):
        return f"is a run; use {folder / 'policies'}"
    if (folder / "probes.safetensors").is_file():
        return f"is an export, which only `verify` and LocalPolicy read; {_WHAT_TO_NAME}"
    return f"has no published version; {_WHAT_TO_NAME}"


def is_version(name: str) -> bool:
    """Return whether `name` is a version: decimal digits without a leading zero, so that a version has one name.

    It has at most 18 digits: more training steps are not plausible, and programs keep versions in 64 bits.
    """
    return len(name) <= _MAX_DIGITS and name.isascii() and name.isdigit() and name == str(int(name))


def belongs(name: str) -> bool:
    """Return whether a version has a file of this relative name."""
    return name in {DESCRIPTION, "probes.npz"} or name.startswith("params/")


def published_name(version: Path) -> str:
    """Return the name that the specification of a version has.

    Args:
        version: the folder of the version.

    Raises:
        DescriptionError: it has no valid name, or policy.json has another hash than the manifest says.
    """
    description = _description(version)
    try:
        return check_name(description["spec"]["name"])
    except MALFORMED as error:
        raise DescriptionError(f"{DESCRIPTION} of {version} has no valid name: {malformation(error)}") from error


def metric(version: Path, name: str) -> float:
    """Return a metric of the evaluation of a version; minus infinity if it has none, or none that is finite.

    Args:
        version: the folder of the version.
        name: such as eval/stay.
    """
    try:
        value = float(_description(version)["provenance"]["metrics"][name])
    except (*MALFORMED, DescriptionError, OverflowError):  # verification names damaged versions
        return -math.inf
    return value if math.isfinite(value) else -math.inf


def best_first(stays: Mapping[int, float]) -> list[int]:
    """Return versions by their eval/stay, the highest first; of versions with the same stay, the newer one first."""
    return sorted(stays, key=lambda version: (stays[version], version), reverse=True)


def _description(version: Path) -> Any:
    """Return the decoded policy.json of a version. A reader cannot trust one with another hash than published."""
    content = _read(version / DESCRIPTION)
    try:
        published = json.loads(_read(version / MANIFEST))["files"][DESCRIPTION]["sha256"]
        if hashlib.sha256(content).hexdigest() != published:
            raise DescriptionError(f"{DESCRIPTION} of {version} has changed since it was published")
        return json.loads(content)
    except MALFORMED as error:
        raise DescriptionError(
            f"{DESCRIPTION} or {MANIFEST} of {version} cannot be parsed: {malformation(error)}"
        ) from error


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():  # to open a pipe would block
            raise DescriptionError(f"{path} is not a file")
        with path.open("rb") as file:
            return file.read(MAX_DESCRIPTION_BYTES)
    except OSError as error:
        raise DescriptionError(f"{path} cannot be read: {error.strerror}") from error
