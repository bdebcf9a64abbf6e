"""Load the newest valid version of each policy from disk.

A version that fails a check is logged, counted by its reason, and not changed; then the next older version is tried.
This module writes and removes nothing.
"""

import dataclasses
import logging
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from policy import bundle
from policy.bundle import Bundle, BundleError
from serving.errors import RefusedVersionError, StartupError, shortage

_LOGGER = logging.getLogger(__name__)

UNREADABLE = "unreadable"  # reason for a version whose files cannot be read


def load_all(
    folders: Sequence[Path],
    *,
    on_rejected: Callable[[str], None],
    versions: Sequence[int] | None = None,
    strict: bool = False,
) -> dict[str, Bundle]:
    """Load the newest valid version from each of `folders`, by the policy's name, in the order of the folders.

    Args:
        folders: each holds the versions of one policy.
        on_rejected: called with the reason, one word, for every version that fails a check.
        versions: the version to load from each folder; None: the newest valid one.
        strict: whether a newest version that fails a check is an error.

    Raises:
        StartupError: a folder has no valid version, two folders hold policies of the same name, or the machine lacks
            a resource that loading needs.
    """
    loaded: dict[str, Bundle] = {}
    for folder, version in zip(folders, versions or [None] * len(folders), strict=True):
        found = _load(folder, version, on_rejected=on_rejected, strict=strict)
        if found.spec.name in loaded:
            first = loaded[found.spec.name].path.parent
            raise StartupError(
                f"{first} and {folder} both hold a policy named {found.spec.name}; serve one of them, or train the"
                " other one with another --name"
            )
        loaded[found.spec.name] = found
    return loaded


def read(path: Path, *, name: str) -> Bundle:
    """Verify and load the version at `path`, and let its policy have the name `name`.

    Raises:
        RefusedVersionError: it fails a check.
        StartupError: the machine lacks a resource that loading needs.
    """
    try:
        found = bundle.read(path)
    except Exception as error:
        if lacking := shortage(error):  # which has nothing to do with the policy
            raise StartupError(f"cannot load {path}: {lacking}") from error
        if not isinstance(error, BundleError | OSError):
            raise
        problem = str(error) if isinstance(error, BundleError) else f"cannot read {path}: {error}"
        reason = error.reason if isinstance(error, BundleError) else UNREADABLE
        raise RefusedVersionError(reason, problem) from error
    return dataclasses.replace(found, spec=dataclasses.replace(found.spec, name=name))


def _load(folder: Path, only: int | None, *, on_rejected: Callable[[str], None], strict: bool) -> Bundle:
    versions = _versions(folder) if only is None else [only]
    for version in reversed(versions):
        path = folder / str(version)
        try:
            return bundle.read(path)
        except Exception as error:
            if lacking := shortage(error):  # which has nothing to do with the policy
                raise StartupError(f"cannot load {path}: {lacking}") from error
            if not isinstance(error, BundleError | OSError):
                raise
            problem = str(error) if isinstance(error, BundleError) else f"cannot read {path}: {error}"
            on_rejected(error.reason if isinstance(error, BundleError) else UNREADABLE)
            if strict and only is None:
                raise StartupError(f"--strict: the newest version cannot be served: {problem}") from error
            _LOGGER.warning("skipping version %d: %s", version, problem)
    if only is not None:
        raise StartupError(
            f"version {only} in {folder}, which the other workers serve, fails a check now; restart the server"
        )
    raise StartupError(
        f"no version in {folder} is valid, of {len(versions)}; the log has the reason for each. Publish a new version,"
        " or choose another folder with --policies"
    )


def _versions(folder: Path) -> list[int]:
    """Return the versions in `folder`, oldest first, at least one."""
    try:
        status = folder.stat()
        if not stat.S_ISDIR(status.st_mode):
            raise StartupError(f"{folder} is not a folder; choose the folder that holds the published versions")
        if versions := bundle.versions(folder):
            return versions
        likely = next(filter(bundle.versions, (folder / "policies", folder.parent)), None)
    except FileNotFoundError as error:
        raise StartupError(
            f"{folder} does not exist; train a policy first, or choose another folder with --policies"
        ) from error
    except OSError as error:
        hint = shortage(error) or "check its permissions"
        raise StartupError(f"cannot read {folder} ({error.strerror}); {hint}") from error
    if likely:
        raise StartupError(f"{folder} holds no published version, but {likely} does; use --policies {likely}")
    raise StartupError(
        f"{folder} holds no published version; train a policy first, or choose another folder with --policies"
    )
