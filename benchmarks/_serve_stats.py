"""Figures of a load, computed from its calls: counts by status, latencies, rates. Pure functions of numbers.

A latency starts at the moment when the call should have been sent, so it includes the delay of a generator or a server
that falls behind. Only calls scheduled within the measured window count. Warm-up calls are counted separately.
"""

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

OK, REJECTED = "OK", "RESOURCE_EXHAUSTED"
PERCENTILES = (50, 90, 99, 99.9)
IN_A_ROW = 5  # normal probes in a row after which a server counts as recovered
_BINS_PER_DECADE = 5


class Call(NamedTuple):
    """One finished call, on the generator's clock."""

    intended_s: float  # scheduled send time
    sent_s: float
    ended_s: float
    code: str  # name of the gRPC status


class Probe(NamedTuple):
    """One single call after a load."""

    sent_s: float  # after the load's last call was sent
    latency_us: float
    code: str


def outcome(calls: Sequence[Call], *, begins_s: float, ends_s: float) -> dict[str, Any]:
    """Return the figures of the calls scheduled from `begins_s` to `ends_s`."""
    own = [call for call in calls if begins_s <= call.intended_s < ends_s]
    answered = [call for call in own if call.code == OK]
    return {
        "window_s": ends_s - begins_s,
        "codes": codes(own),
        "discarded": codes([call for call in calls if not begins_s <= call.intended_s < ends_s]),
        "offered_per_s": len(own) / (ends_s - begins_s),
        "answered_per_s": answered_per_s(calls, begins_s=begins_s, ends_s=ends_s),
        "latency_us": summary([call.ended_s - call.intended_s for call in answered]),
        "rejection_us": summary([call.ended_s - call.intended_s for call in own if call.code != OK]),
        "lateness_us": summary([call.sent_s - call.intended_s for call in own]),
    }


def codes(calls: Sequence[Call]) -> dict[str, int]:
    """Count calls by the name of their status."""
    return dict(Counter(call.code for call in calls))


def failed(result: dict[str, Any]) -> int:
    """Count the calls of an outcome that were not answered, including warm-up calls."""
    return sum(count for part in ("codes", "discarded") for code, count in result[part].items() if code != OK)


def answered_per_s(calls: Sequence[Call], *, begins_s: float, ends_s: float) -> float:
    """Return answers per second; a call counts with the fraction of its duration that lies in the window.

    So long calls that start or end outside the window, and answers that arrive in bursts, do not distort the rate.
    """
    times = np.array([(call.sent_s, call.ended_s) for call in calls if call.code == OK]).reshape(-1, 2)
    inside = np.minimum(times[:, 1], ends_s) - np.maximum(times[:, 0], begins_s)
    shares = np.maximum(inside, 0) / (times[:, 1] - times[:, 0])
    return float(shares.sum() / (ends_s - begins_s))


def summary(seconds: Sequence[float]) -> dict[str, Any] | None:
    """Return percentiles (nearest rank) and a histogram, in microseconds; None without values."""
    if not seconds:
        return None
    us = np.asarray(seconds) * 1e6
    ranks = np.percentile(us, PERCENTILES, method="inverted_cdf")
    # 1 us is the resolution of the generator's clock, and zero has no logarithm.
    bins = Counter(np.floor(np.log10(np.maximum(us, 1)) * _BINS_PER_DECADE).astype(int).tolist())
    return {
        "calls": len(us),
        "mean": round(float(us.mean()), 1),
        **{f"p{percentile:g}": round(float(rank), 1) for percentile, rank in zip(PERCENTILES, ranks, strict=True)},
        "max": round(float(us.max()), 1),
        "histogram": {f"{10 ** (index / _BINS_PER_DECADE):.4g}": count for index, count in sorted(bins.items())},
    }


def schedule(rate_per_s: float, seconds: float, *, seed: int | None) -> np.ndarray:
    """Return send times in [0, `seconds`): Poisson arrivals, or evenly spaced if `seed` is None. [calls]"""
    if seed is None:
        return np.arange(round(rate_per_s * seconds)) / rate_per_s
    rng = np.random.default_rng(seed)
    return np.sort(rng.uniform(0, seconds, rng.poisson(rate_per_s * seconds)))


def recovery_s(probes: Sequence[Probe], *, normal_us: float) -> float | None:
    """Return seconds from the load's end to the last of five normal probes in a row; None if there are none.

    A probe is normal if it was answered within `normal_us`.
    """
    in_a_row = 0
    for probe in probes:
        in_a_row = in_a_row + 1 if probe.code == OK and probe.latency_us <= normal_us else 0
        if in_a_row == IN_A_ROW:
            return probe.sent_s + probe.latency_us / 1e6
    return None


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Return the median of the ratios of the rounds."""
    return statistics.median(above / below for above, below in zip(numerators, denominators, strict=True))
