"""Which published version of a policy is the best one: that with the highest eval/stay in its provenance."""

import math
from pathlib import Path

from policy import published
from policy.published import STAY, metric

_MAX_DIGITS = 17  # of a 64-bit float


def best_version(root: Path) -> int | None:
    """Return the version in the folder `root` whose evaluation had the highest eval/stay, or None if there is none.

    A version without this figure, for example one that was imported, counts as the lowest. Ties go to the newer one.
    """
    stays = {version: metric(root / str(version), STAY) for version in published.versions(root)}
    return next(iter(published.best_first(stays)), None)


def describe_version(root: Path, version: int) -> str:
    """Return the environment steps and the eval/stay of a version, as far as its provenance has them."""
    steps = metric(root / str(version), "env_steps")
    (stay,) = stays_in_words(root, version)
    return f"{f'{steps:,.0f} environment steps, ' if math.isfinite(steps) else ''}{stay}"


def stays_in_words(root: Path, *versions: int) -> list[str]:
    """Return the eval/stay of each version in words, with two digits or as many as tell them apart."""
    stays = [metric(root / str(version), STAY) for version in versions]
    enough = (
        digits for digits in range(2, _MAX_DIGITS) if len({f"{stay:.{digits}f}" for stay in stays}) == len({*stays})
    )
    digits = next(enough, _MAX_DIGITS)
    return [f"eval/stay {stay:.{digits}f}" if math.isfinite(stay) else "no eval/stay" for stay in stays]
