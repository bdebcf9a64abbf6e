"""Which published version of a policy is the best one: that with the highest eval/stay in its provenance."""

import json
import math
from pathlib import Path

from policy import bundle


def best_version(root: Path) -> int | None:
    """Return the version in the folder `root` whose evaluation had the highest eval/stay, or None if there is none.

    A version without this figure, for example one that was imported, counts as the lowest. Ties go to the newer one.
    """
    return max(bundle.versions(root), key=lambda version: (_stay(root, version), version), default=None)


def describe_version(root: Path, version: int) -> str:
    """Return the environment steps and the eval/stay of a version, as far as its provenance has them."""
    steps = _metric(root, version, "env_steps")
    return f"{f'{steps:,.0f} environment steps, ' if math.isfinite(steps) else ''}{stay_in_words(root, version)}"


def stay_in_words(root: Path, version: int) -> str:
    """Return the eval/stay of a version in words."""
    stay = _stay(root, version)
    return f"eval/stay {stay:.2f}" if math.isfinite(stay) else "no eval/stay"


def _stay(root: Path, version: int) -> float:
    """Return the eval/stay of a version's evaluation, or minus infinity if there is none."""
    return _metric(root, version, "eval/stay")


def _metric(root: Path, version: int, name: str) -> float:
    """Return a metric in the version's provenance, or minus infinity if it is not there or not finite."""
    try:
        description = json.loads((root / str(version) / "policy.json").read_bytes())
        value = float(description["provenance"]["metrics"][name])
    except (KeyError, OSError, RecursionError, TypeError, ValueError):  # a server names damaged versions
        return -math.inf
    return value if math.isfinite(value) else -math.inf
