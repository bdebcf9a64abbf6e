"""Load the newest valid version of each policy from disk.

A version that fails a check is logged, counted by its reason, and not changed; then the next older version is tried.
This module writes and removes nothing.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from policy import bundle
from policy.bundle import Bundle, BundleError
from serving.errors import StartupError

_LOGGER = logging.getLogger(__name__)

UNREADABLE = "unreadable"  # reason for a version whose files cannot be read


def load_all(
    folders: Sequence[Path], *, on_rejected: Callable[[str], None], versions: Sequence[int] | None = None
) -> dict[str, Bundle]:
    """Load the newest valid version from each of `folders`, by the policy's name, in the order of the folders.

    Args:
        folders: each holds the versions of one policy.
        on_rejected: called with the reason, one word, for every version that fails a check.
        versions: the version to load from each folder; None: the newest valid one.

    Raises:
        StartupError: a folder has no valid version, or two folders hold policies of the same name.
    """
    loaded: dict[str, Bundle] = {}
    for folder, version in zip(folders, versions or [None] * len(folders), strict=True):
        found = _load(folder, version, on_rejected=on_rejected)
        if found.spec.name in loaded:
            first = loaded[found.spec.name].path.parent
            raise StartupError(
                f"{first} and {folder} both hold a policy named {found.spec.name}; serve one of them, or train the"
                " other one with another --name"
            )
        loaded[found.spec.name] = found
    return loaded


def _load(folder: Path, only: int | None, *, on_rejected: Callable[[str], None]) -> Bundle:
    versions = _versions(folder) if only is None else [only]
    for version in reversed(versions):
        try:
            return bundle.read(folder / str(version))
        except BundleError as error:
            _LOGGER.warning("skipping version %d: %s", version, error)
            on_rejected(error.reason)
        except OSError as error:
            _LOGGER.warning("skipping version %d: cannot read %s: %s", version, folder / str(version), error)
            on_rejected(UNREADABLE)
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
    if not folder.exists():
        raise StartupError(f"{folder} does not exist; train a policy first, or choose another folder with --policies")
    if not folder.is_dir():
        raise StartupError(f"{folder} is not a folder; choose the folder that holds the published versions")
    try:
        versions = bundle.versions(folder)
    except OSError as error:
        raise StartupError(f"cannot read {folder} ({error.strerror}); check its permissions") from error
    if versions:
        return versions
    for likely in (folder / "policies", folder.parent):
        if bundle.versions(likely):
            raise StartupError(f"{folder} holds no published version, but {likely} does; use --policies {likely}")
    raise StartupError(
        f"{folder} holds no published version; train a policy first, or choose another folder with --policies"
    )
