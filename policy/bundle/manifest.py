"""What a bundle consists of: its format, which files belong to it, and the errors of damaged ones."""

import contextlib
from collections.abc import Generator
from pathlib import Path
from typing import Literal

from policy import verified_folder
from policy.published import FORMAT_VERSION, belongs
from policy.verified_folder import DamageError

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
        self.detail = detail
        self.problem = f"{path} is not a usable policy ({reason}): {detail.rstrip('.')}"
        self.advice = _ADVICE.get(reason, "copy it again from where it was published, or use another version")
        super().__init__(path, reason, detail)

    def __str__(self) -> str:
        return f"{self.problem}; {self.advice}"


def verify(path: Path) -> str:
    """Compare the files of the bundle at `path` with its manifest; return the manifest's own SHA-256.

    Raises:
        BundleError: the manifest cannot be read, or a file is missing, foreign, changed, or a link to outside.
        OSError: a file cannot be read.
    """
    with _refusing(path):
        return verified_folder.verify(path, format_version=FORMAT_VERSION, belongs=belongs)


def copy(path: Path, target: Path, *, root: Path) -> str:
    """Copy the bundle at `path` into the empty folder `target`, verified; return the manifest's own SHA-256.

    Args:
        root: the folder under which symbolic links must end.

    Raises:
        BundleError: as `verify`.
        OSError: a file cannot be read or written.
    """
    with _refusing(path):
        return verified_folder.copy(path, target, root=root, format_version=FORMAT_VERSION, belongs=belongs)


@contextlib.contextmanager
def _refusing(path: Path) -> Generator[None]:
    """Turn a DamageError into the error of the bundle at `path`."""
    try:
        yield
    except DamageError as error:
        raise BundleError(path, "manifest" if error.reason == "format" else error.reason, error.detail) from error
