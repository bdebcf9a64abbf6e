"""What serves: the labels of kilolayer_build_info and kilolayer_policy_info."""

import contextlib
import functools
import json
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from policy import git

if TYPE_CHECKING:
    from policy.spec import PolicySpec  # it imports JAX, which the supervisor does not need

BUILD_LABELS = ("version", "commit", "jax", "device")
POLICY_LABELS = (
    *("policy", "version", "environment", "actor_depth", "actor_width", "critic", "critic_depth", "action_chunk"),
    *("state_dim", "goal_dim", "action_dim", "control_period_s"),
)
_ROOT = Path(__file__).parents[2]
_DISTRIBUTION = "kilolayer-stack"
_GIT_S, _MOST_BYTES = 5.0, 1000  # at most, to describe a checkout
UNKNOWN = ""  # a label without a value


def build_labels(*, device: str) -> dict[str, str]:
    """Return the labels of the program.

    Args:
        device: what it computes on, such as cpu.
    """
    return {
        "version": version(_ROOT),
        "commit": commit(_ROOT),
        "jax": metadata.version("jax"),
        "device": device,
    }


def policy_labels(spec: "PolicySpec", version: int) -> dict[str, str]:
    """Return the labels of a policy. Without a critic, its depth is 0."""
    known: dict[str, object] = {
        "policy": spec.name,
        "version": version,
        "control_period_s": f"{spec.control_period_s:g}",
    }
    return {name: str(known[name] if name in known else getattr(spec, name)) for name in POLICY_LABELS}


@functools.cache
def commit(root: Path) -> str:
    """Return the commit of the program; empty if it is unknown.

    It is that of the checkout, with "-dirty" if there are changes that are not committed; or the one that the image was
    built from; or the one that pip installed.

    Args:
        root: the folder with the packages.
    """
    of_the_image = root / "commit.txt"
    if (root / ".git").exists():  # or git would describe a checkout that the installation happens to be in
        return _describe(root)
    if of_the_image.is_file():
        return of_the_image.read_text().strip()
    try:
        installed = metadata.distribution(_DISTRIBUTION).read_text("direct_url.json")  # PEP 610
    except metadata.PackageNotFoundError:
        return UNKNOWN
    return json.loads(installed or "{}").get("vcs_info", {}).get("commit_id", UNKNOWN)


def _describe(checkout: Path) -> str:
    command = ("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    try:
        return git.output(checkout, *command, most_bytes=_MOST_BYTES, timeout_s=_GIT_S).decode().strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or the checkout is another user's
        return UNKNOWN


def version(root: Path) -> str:
    """Return the release of the program: the installed one, or that of the files at `root`; empty if unknown."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(_DISTRIBUTION)
    project = root / "pyproject.toml"  # of an image
    return str(tomllib.loads(project.read_text())["project"]["version"]) if project.is_file() else UNKNOWN
