"""Where an export or an import may write: not into a published or exported folder, and not beside versions as one."""

import os
from pathlib import Path

from policy.published import DESCRIPTION, is_version, versions
from policy.verified_folder import MANIFEST


def problem(folder: Path) -> str:
    """Say why nothing may be written at `folder`; empty if it may be.

    A file more would damage a folder with a manifest, and a folder whose name is a number would become a version.
    """
    resolved = Path(os.path.realpath(folder))
    for around in (resolved, *resolved.parents):
        if (around / MANIFEST).exists():
            where = "is" if around == resolved else f"is in {around},"
            return f"{folder} {where} a folder with a {MANIFEST}, which another file would damage; choose another place"
    if is_version(resolved.name) and _has_version(resolved.parent):
        return (
            f"{folder} would look like a version of the policy in {folder.parent}; choose a name that is not a number, "
            "or another place"
        )
    return ""


def _has_version(root: Path) -> bool:
    return any((root / str(version) / DESCRIPTION).exists() for version in versions(root))
