"""95 % confidence intervals of figures that are measured on a sample of episodes."""

import math
from typing import NamedTuple

import numpy as np

_Z = 1.959963984540054  # the 97.5 % quantile of the normal distribution
_RESAMPLES = 1_000


class Interval(NamedTuple):
    """The two ends of an interval."""

    low: float
    high: float


def wilson(count: int, total: int) -> Interval:
    """Return the score interval of a share, `count` of `total` episodes (Wilson 1927, without continuity correction).

    Unlike the mean plus or minus two standard errors, it stays within [0, 1] and has a length at 0 and at `total`.
    """
    share, z2 = count / total, _Z**2 / total
    center = (share + z2 / 2) / (1 + z2)
    half = _Z * math.sqrt(share * (1 - share) / total + z2 / total / 4) / (1 + z2)
    return Interval(max(0.0, center - half), min(1.0, center + half))


def bootstrap(figures: np.ndarray) -> Interval:
    """Return the percentile interval of the mean of `figures: [episodes]`, over 1,000 resamples (Efron 1979).

    The resamples are drawn with a fixed seed: the same figures give the same interval. Figures that are all equal give
    an interval of length 0.
    """
    rows = np.random.default_rng(0).integers(len(figures), size=(_RESAMPLES, len(figures)))
    low, high = np.percentile(figures[rows].mean(axis=1), [2.5, 97.5])
    return Interval(float(low), float(high))
