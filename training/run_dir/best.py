"""Which published version of a policy is the best one: that with the highest eval/stay in its provenance."""

import math
from pathlib import Path

from policy import published
from policy.published import STAY, metric


def best_version(root: Path) -> int | None:
    """Return the version in the folder `root` whose evaluation had the highest eval/stay, or None if there is none.

    A version without this figure, for example one that was imported, counts as the lowest. Ties go to the newer one.
    """
    stays = {version: metric(root / str(version), STAY) for version in published.versions(root)}
    return next(iter(published.best_first(stays)), None)


def describe_version(root: Path, version: int) -> str:
    """Return the environment steps and the eval/stay of a version, as far as its provenance has them."""
    steps = metric(root / str(version), "env_steps")
    return f"{f'{steps:,.0f} environment steps, ' if math.isfinite(steps) else ''}{stay_in_words(root, version)}"


def stay_in_words(root: Path, version: int) -> str:
    """Return the eval/stay of a version in words."""
    stay = metric(root / str(version), STAY)
    return f"eval/stay {stay:.2f}" if math.isfinite(stay) else "no eval/stay"
