"""The state of the git checkout that the code runs from, if it does: its commit, and what was changed since."""

import hashlib
import subprocess
from pathlib import Path
from typing import NamedTuple

from policy import git

MOST_BYTES = 1_000_000
_CUT = b"\n(cut here: the rest of the diff is not stored)\n"
_TIMEOUT_S = 10.0


class Checkout(NamedTuple):
    """A commit and the changes of tracked files since."""

    commit: str
    diff: bytes  # as `git diff HEAD` prints it, at most `MOST_BYTES` and a line that says so; empty if nothing changed

    @property
    def diff_name(self) -> str:
        """The name of the file that holds the diff, after its hash; empty if nothing changed."""
        return f"{hashlib.sha256(self.diff).hexdigest()[:12]}.diff" if self.diff else ""


def find(root: Path) -> Checkout | None:
    """Return the state of the checkout whose top folder is `root`; None if there is none, or no git that answers."""
    try:
        top, commit = _git(root, "rev-parse", "--show-toplevel", "HEAD").decode().splitlines()
        if Path(top).resolve() != root.resolve():  # installed into a folder of another repository
            return None
        diff = _git(root, "diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv")
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None
    return Checkout(commit, diff if len(diff) <= MOST_BYTES else diff[:MOST_BYTES] + _CUT)


def _git(root: Path, *arguments: str) -> bytes:
    return git.output(root, *arguments, most_bytes=MOST_BYTES + 1, timeout_s=_TIMEOUT_S)
