"""Where an export or an import may write: not into a published or exported folder, and not in place of a version."""

import os
from pathlib import Path

from policy.published import DESCRIPTION, is_version, versions
from policy.verified_folder import MANIFEST


def problem(folder: Path) -> str:
    """Return why nothing may be written at `folder`, or an empty string.

    An additional file would damage a folder with a manifest. A folder with a number as its name, beside versions of a
    policy, would look like one of them.
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
