"""Policies on disk: the newest version of each that verifies, loaded.

A version that fails verification is named in the log, counted by its reason, and left alone; the next older one is
tried. Nothing is ever written or removed here.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from policy import bundle
from policy.bundle import Bundle, BundleError
from serving.errors import StartupError

_LOGGER = logging.getLogger(__name__)

UNREADABLE = "unreadable"  # reason for a version whose files the operating system does not let us read


def load_all(
    folders: Sequence[Path], *, on_rejected: Callable[[str], None], versions: Sequence[int] | None = None
) -> dict[str, Bundle]:
    """Load the newest usable version from each of `folders`, by the policy's name, in the order of the folders.

    Args:
        folders: each holds the versions of one policy.
        on_rejected: called with the reason, one word, for every version that was passed over.
        versions: one of each folder, which is loaded and no other; None: the newest.

    Raises:
        StartupError: a folder has no usable version, or two folders hold policies of one name.
    """
    loaded: dict[str, Bundle] = {}
    for folder, version in zip(folders, versions or [None] * len(folders), strict=True):
        found = _load(folder, version, on_rejected=on_rejected)
        if found.spec.name in loaded:
            first = loaded[found.spec.name].path.parent
            raise StartupError(
                f"{first} and {folder} both hold a policy named {found.spec.name}; serve one of them, or train the"
                " other under another name"
            )
        loaded[found.spec.name] = found
    return loaded


def load_newest(folder: Path, *, on_rejected: Callable[[str], None]) -> Bundle:
    """Load the newest version under `folder` that verifies; arguments and errors as `load_all`."""
    return _load(folder, None, on_rejected=on_rejected)


def _load(folder: Path, only: int | None, *, on_rejected: Callable[[str], None]) -> Bundle:
    versions = _versions(folder) if only is None else [only]
    for version in reversed(versions):
        try:
            return bundle.read(folder / str(version))
        except BundleError as error:
            _LOGGER.warning("version %d is passed over: %s", version, error)
            on_rejected(error.reason)
        except OSError as error:
            _LOGGER.warning("version %d is passed over: %s cannot be read: %s", version, folder / str(version), error)
            on_rejected(UNREADABLE)
    if only is not None:
        raise StartupError(f"version {only} in {folder}, which the other workers serve, is not usable any more")
    raise StartupError(
        f"none of the {len(versions)} versions in {folder} is usable, the log names each; publish a new one, or name"
        " another folder with --policies"
    )


def _versions(folder: Path) -> list[int]:
    """The versions under `folder`, oldest first, at least one."""
    if not folder.exists():
        raise StartupError(f"{folder} does not exist; train a policy first, or name its folder with --policies")
    if not folder.is_dir():
        raise StartupError(f"{folder} is not a folder; name the folder that holds the published versions")
    try:
        versions = bundle.versions(folder)
    except OSError as error:
        raise StartupError(f"{folder} cannot be read ({error.strerror}); check its permissions") from error
    if versions:
        return versions
    for likely in (folder / "policies", folder.parent):
        if bundle.versions(likely):
            raise StartupError(f"{folder} holds no published version, but {likely} does; name that with --policies")
    raise StartupError(f"{folder} holds no published version; train a policy first, or name another with --policies")
