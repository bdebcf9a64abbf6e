"""Simulate canaries that decide by themselves: how often they are wrong, and how many episodes they need.

    python benchmarks/canary_decisions.py --json benchmarks/results/canary_decisions.json

Each canary draws the episodes of both versions with fixed success rates, and decides as the server does, with the
default error rates of `serving.policies.sequential_test.DecisionRule`. The seed is fixed.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import _record
import numpy as np
import tyro

from serving.policies.sequential_test import (
    BlockSizes,
    DecisionRule,
    block_sizes,
    growth,
    initial_capital,
    log_evidence,
)

RATES = (
    *((0.8, 0.8), (0.95, 0.95)),
    *((0.8, 0.5), (0.8, 0.6), (0.8, 0.7), (0.8, 0.75), (0.95, 0.85)),
    *((0.8, 0.85), (0.8, 0.9), (0.5, 0.7), (0.95, 0.99)),
)
"""Success rates of the live version and of the candidate."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Simulate canaries that decide by themselves."""

    json: Path | None = None
    """File for the record."""
    canaries: int = 1000
    """Number of canaries for each pair of success rates."""
    episodes: int = 4000
    """Episodes of the candidate after which a canary ends without a decision."""
    share: float = 0.1
    """Share of the robots that get the candidate."""


class Decisions(NamedTuple):
    """What simulated canaries decided."""

    promoted: np.ndarray  # [canaries] bool
    rolled_back: np.ndarray  # [canaries] bool
    episodes: np.ndarray  # [canaries] of the candidate, until the decision or the end


SuccessRates = Callable[[int], tuple[float, float]]
"""The success rates of the live version and of the candidate in a block, numbered from 0."""


def simulate(
    rates: SuccessRates, *, rule: DecisionRule, share: float, canaries: int, episodes: int, seed: int = 0
) -> Decisions:
    """Run `canaries` until each has decided, or until its candidate has had `episodes`."""
    random, sizes = np.random.default_rng(seed), block_sizes(share)
    limits = -np.log([rule.false_promotion_rate, rule.false_rollback_rate])
    undecided, capital = np.arange(canaries), initial_capital(canaries)
    significant = np.zeros((canaries, 2), bool)
    ended = np.full(canaries, episodes)
    for block in range(episodes // sizes.candidate):
        capital = capital + growth(_differences(random, rates(block), sizes, undecided.size), margin=rule.margin)
        if (block + 1) * min(sizes) < rule.min_episodes:
            continue
        found = log_evidence(capital) >= limits
        decided = found.any(axis=1)
        significant[undecided] = found
        ended[undecided[decided]] = (block + 1) * sizes.candidate
        undecided, capital = undecided[~decided], capital[~decided]
        if not undecided.size:
            break
    return Decisions(significant[:, 0] & ~significant[:, 1], significant[:, 1], ended)


def _differences(
    random: np.random.Generator, rates: tuple[float, float], sizes: BlockSizes, canaries: int
) -> np.ndarray:
    """Draw the successes of one block of each canary, and return the differences [canaries] of their shares."""
    live, candidate = (random.binomial(size, rate, canaries) / size for size, rate in zip(sizes, rates, strict=True))
    return candidate - live


def main() -> None:
    """Simulate every pair of success rates."""
    options, about = tyro.cli(Options), _record.machine()
    rows: list[dict[str, float | None]] = []
    for live, candidate in RATES:
        decisions = simulate(
            lambda _, both=(live, candidate): both,
            rule=DecisionRule(),
            share=options.share,
            canaries=options.canaries,
            episodes=options.episodes,
        )
        decided = decisions.promoted | decisions.rolled_back
        mean = float(decisions.episodes[decided].mean()) if decided.any() else None
        p90 = float(np.percentile(decisions.episodes, 90)) if decided.mean() >= 0.9 else None
        rows.append(
            {
                "live": live,
                "candidate": candidate,
                "promoted": float(decisions.promoted.mean()),
                "rolled back": float(decisions.rolled_back.mean()),
                "mean episodes": mean,
                "p90 episodes": p90,
            }
        )
    _record.report(
        "decisions of canaries",
        rows,
        about=about,
        json_file=options.json,
        notes=f"{options.canaries} canaries each, {options.share:g} of the robots; at most {options.episodes} episodes"
        " of the candidate; error rates of 5 %; the mean is over the canaries that decided",
    )


if __name__ == "__main__":
    main()
