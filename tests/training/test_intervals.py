"""Intervals against values worked out by hand."""

import numpy as np
import pytest

from training import intervals


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [
        (8, 10, 0.490, 0.943),  # (0.8 + 1.96^2 / 20 -+ 1.96 sqrt(0.16 / 10 + 1.96^2 / 400)) / (1 + 1.96^2 / 10)
        (0, 10, 0.0, 0.278),  # 1.96^2 / (10 + 1.96^2)
        (10, 10, 0.722, 1.0),
        (122, 128, 0.902, 0.978),
    ],
)
def test_the_wilson_interval(count: int, total: int, low: float, high: float) -> None:
    assert intervals.wilson(count, total) == pytest.approx((low, high), abs=5e-4)


def test_the_bootstrap_interval_is_near_that_of_the_normal_distribution() -> None:
    figures = np.repeat([0.0, 1.0], [100, 300])
    low, high = intervals.bootstrap(figures)
    half = 1.96 * (0.75 * 0.25 / 400) ** 0.5  # 0.0424
    assert (low, high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.005)
    assert intervals.bootstrap(figures) == (low, high), "the same figures give the same interval"


def test_equal_figures_have_an_interval_without_length() -> None:
    assert intervals.bootstrap(np.full(7, 0.25)) == (0.25, 0.25)
