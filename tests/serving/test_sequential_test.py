"""The evidence by hand, the error rates exactly and simulated, and the power."""

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from serving.policies.sequential_test import DecisionRule, Evidence, SequentialTest, Verdict, block_sizes

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
CANARIES = 1000
STAKES = [(2 * number + 1) / 32 for number in range(16)]
# Means over these stakes: of the stake, 1/2; of its square, 1/3 - 1/3072
SQUARE = 1 / 3 - 1 / 3072


def pairs(*outcomes: tuple[int, int], **rule: Any) -> SequentialTest:
    """A test of half the robots, after pairs of one live episode and one of the candidate; 1 is a success."""
    test = SequentialTest(DecisionRule(**rule), share=0.5)
    for live, candidate in outcomes:
        test.record(is_candidate=False, reached=bool(live))
        test.record(is_candidate=True, reached=bool(candidate))
    return test


def capitals(evidence: Evidence) -> list[float]:
    return [math.exp(side) for side in evidence]


@pytest.mark.parametrize(
    ("outcomes", "better", "worse"),
    [
        ([], 1, 1),
        ([(0, 0), (1, 1)], 1, 1),
        ([(0, 1)], 1.5, 0.5),  # the means of 1 + b and of 1 - b
        ([(1, 0)], 0.5, 1.5),
        ([(0, 1), (0, 1)], 2 + SQUARE, SQUARE),  # of (1 + b)^2 and of (1 - b)^2
        ([(0, 1), (1, 1), (1, 0)], 1 - SQUARE, 1 - SQUARE),
    ],
)
def test_the_capital_is_the_mean_over_the_stakes(outcomes: list[tuple[int, int]], better: float, worse: float) -> None:
    assert capitals(pairs(*outcomes).evidence) == pytest.approx([better, worse])


def test_a_margin_is_taken_off_each_difference() -> None:
    """(1 - 0.25) / 1.25 = 0.6, and the mean of 1 + 0.6 b is 1.3; (-1 - 0.25) / 1.25 = -1, and that of 1 - b is 0.5."""
    assert capitals(pairs((0, 1), margin=0.25).evidence) == pytest.approx([1.3, 0.5])
    assert capitals(pairs((1, 1), margin=0.25).evidence) == pytest.approx([0.9, 0.9])  # of 1 - 0.2 b


def test_a_block_has_as_many_episodes_as_the_share_gives() -> None:
    """A tenth of the robots: a success beside 6 of 9 gives D = 1/3, and mean capitals of 1 + 1/6 and 1 - 1/6."""
    test = SequentialTest(DecisionRule(), share=0.1)
    test.record(is_candidate=True, reached=True)
    for reached in (1, 0, 1, 1, 0, 1, 1, 0):
        test.record(is_candidate=False, reached=bool(reached))
    assert capitals(test.evidence) == pytest.approx([1, 1])
    test.record(is_candidate=False, reached=True)
    assert capitals(test.evidence) == pytest.approx([7 / 6, 5 / 6])


@pytest.mark.parametrize(
    ("share", "live", "candidate"),
    [(0.001, 10, 1), (0.1, 9, 1), (0.25, 3, 1), (0.3, 2, 1), (0.5, 1, 1), (0.75, 1, 3), (0.9, 1, 9), (1.0, 1, 10)],
)
def test_the_rarer_version_has_one_episode_in_a_block(share: float, live: int, candidate: int) -> None:
    assert block_sizes(share) == (live, candidate)


def test_episodes_are_compared_in_their_order_and_at_most_8_blocks_wait() -> None:
    test = SequentialTest(DecisionRule(), share=0.5)
    for reached in (False, False, *[True] * 7, False):  # the first two are dropped
        test.record(is_candidate=False, reached=reached)
    for _ in range(7):
        test.record(is_candidate=True, reached=True)
    assert capitals(test.evidence) == pytest.approx([1, 1])
    test.record(is_candidate=True, reached=True)
    assert capitals(test.evidence) == pytest.approx([1.5, 0.5])
    test.record(is_candidate=True, reached=True)  # there is no live episode left
    assert capitals(test.evidence) == pytest.approx([1.5, 0.5])


def test_another_share_keeps_the_evidence_and_begins_a_new_block() -> None:
    test = pairs((0, 1))
    test.record(is_candidate=False, reached=True)
    test.change_share(0.25)
    for _ in range(3):
        test.record(is_candidate=False, reached=False)
    test.record(is_candidate=True, reached=True)
    assert capitals(test.evidence) == pytest.approx([2 + SQUARE, SQUARE])


def test_a_verdict_needs_a_capital_of_one_over_the_error_rate() -> None:
    """After n pairs that favor the candidate, it is the mean of (1 + b)^n: 18.1 for n = 6, 31.7 for n = 7."""
    mean = [sum((1 + stake) ** number for stake in STAKES) / 16 for number in range(8)]
    assert mean[6] < 20 < mean[7]
    assert pairs(*[(0, 1)] * 6, min_episodes=1).verdict is Verdict.UNDECIDED
    assert pairs(*[(0, 1)] * 7, min_episodes=1).verdict is Verdict.BETTER
    assert pairs(*[(1, 0)] * 6, min_episodes=1).verdict is Verdict.UNDECIDED
    assert pairs(*[(1, 0)] * 7, min_episodes=1).verdict is Verdict.WORSE


def test_each_decision_has_its_own_error_rate() -> None:
    strict = {"min_episodes": 1, "false_promotion_rate": 0.001}
    assert pairs(*[(0, 1)] * 7, **strict).verdict is Verdict.UNDECIDED
    assert pairs(*[(1, 0)] * 7, **strict).verdict is Verdict.WORSE
    strict = {"min_episodes": 1, "false_rollback_rate": 0.001}
    assert pairs(*[(0, 1)] * 7, **strict).verdict is Verdict.BETTER
    assert pairs(*[(1, 0)] * 7, **strict).verdict is Verdict.UNDECIDED


def test_nothing_is_decided_before_both_versions_have_enough_episodes() -> None:
    test = pairs(*[(0, 1)] * 29)
    assert test.evidence.better > 10
    assert test.record(is_candidate=True, reached=True) is Verdict.UNDECIDED
    assert test.record(is_candidate=False, reached=False) is Verdict.BETTER


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"false_promotion_rate": 0.0}, "false_promotion_rate must be above 0 and below 1, such as 0.05; got 0.0"),
        ({"false_rollback_rate": 1.0}, "false_rollback_rate must be above 0 and below 1, such as 0.05; got 1.0"),
        ({"margin": 1.0}, "margin must be at least 0 and below 1, such as 0.02; got 1.0"),
        ({"margin": -0.1}, "margin must be at least 0"),
        ({"min_episodes": 0}, "min_episodes must be at least 1, got 0"),
    ],
)
def test_a_rule_that_cannot_be_kept_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecisionRule(**wrong)


def test_the_exact_probability_of_a_false_decision_is_within_the_error_rate() -> None:
    """Equal versions, looked at after each of 400 discordant pairs, which favor either version with probability 1/2."""
    rule = DecisionRule(min_episodes=1)
    crossed, open_paths = 0.0, {0: 1.0}  # probability by pairs that favored the candidate
    for number in range(1, 401):
        stepped: dict[int, float] = {}
        for wins, probability in open_paths.items():
            for more in (0, 1):
                stepped[wins + more] = stepped.get(wins + more, 0.0) + probability / 2
        open_paths = {}
        for wins, probability in stepped.items():
            capital = sum((1 + stake) ** wins * (1 - stake) ** (number - wins) for stake in STAKES) / 16
            if capital >= 1 / rule.false_promotion_rate:
                crossed += probability
            else:
                open_paths[wins] = probability
    assert 0.02 < crossed <= 0.05


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script that simulates canaries."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("canary_decisions")


@pytest.fixture
def simulate(benchmark: Any) -> Callable[..., Any]:
    """Simulate 1,000 canaries, of a tenth of the robots unless told otherwise."""

    def run(live: float, candidate: float, *, episodes: int, share: float = 0.1, **rule: Any) -> Any:
        return benchmark.simulate(
            lambda _: (live, candidate), rule=DecisionRule(**rule), share=share, canaries=CANARIES, episodes=episodes
        )

    return run


MOST = int(binom.ppf(0.999, CANARIES, 0.05))  # 73 false decisions: more would show a rate above 5 %


@pytest.mark.parametrize("rate", [0.5, 0.8, 0.95])
def test_equal_versions_are_rarely_promoted_or_rolled_back(simulate: Callable[..., Any], rate: float) -> None:
    decisions = simulate(rate, rate, episodes=1000)
    assert 0 < decisions.promoted.sum() <= MOST
    assert 0 < decisions.rolled_back.sum() <= MOST


def test_a_difference_of_the_margin_does_not_count(simulate: Callable[..., Any]) -> None:
    assert simulate(0.7, 0.8, episodes=1000, margin=0.1).promoted.sum() <= MOST
    assert simulate(0.8, 0.7, episodes=1000, margin=0.1).rolled_back.sum() <= MOST


def test_a_small_error_rate_is_kept_too(simulate: Callable[..., Any]) -> None:
    decisions = simulate(0.8, 0.8, episodes=1000, false_promotion_rate=0.01, false_rollback_rate=0.01)
    most = binom.ppf(0.999, CANARIES, 0.01)
    assert decisions.promoted.sum() <= most
    assert decisions.rolled_back.sum() <= most


def test_tasks_that_become_harder_for_both_versions_do_no_harm(benchmark: Any) -> None:
    def falling(block: int) -> tuple[float, float]:
        rate = 0.95 if block < 200 else 0.3
        return rate, rate

    decisions = benchmark.simulate(falling, rule=DecisionRule(), share=0.1, canaries=CANARIES, episodes=1000)
    assert decisions.promoted.sum() <= MOST
    assert decisions.rolled_back.sum() <= MOST


@pytest.mark.parametrize(("share", "episodes"), [(0.1, 500), (0.5, 500), (0.9, 4000)])
def test_a_worse_candidate_is_rolled_back(simulate: Callable[..., Any], share: float, episodes: int) -> None:
    decisions = simulate(0.8, 0.6, episodes=episodes, share=share)
    assert decisions.rolled_back.mean() >= 0.99
    assert decisions.promoted.sum() == 0


@pytest.mark.parametrize(("share", "episodes"), [(0.1, 500), (0.5, 1000), (0.9, 4000)])
def test_a_better_candidate_is_promoted(simulate: Callable[..., Any], share: float, episodes: int) -> None:
    decisions = simulate(0.8, 0.9, episodes=episodes, share=share)
    assert decisions.promoted.mean() >= 0.99
    assert decisions.rolled_back.sum() <= 1


def test_a_tenth_of_the_robots_needs_about_50_episodes_to_roll_back_a_fifth_less(simulate: Callable[..., Any]) -> None:
    assert np.mean(simulate(0.8, 0.6, episodes=500).episodes) == pytest.approx(48, abs=4)


def test_the_simulation_decides_as_the_test_does(benchmark: Any) -> None:
    """The same blocks, once through `record` and once through the functions that the simulation uses."""
    rule = DecisionRule(min_episodes=1)
    for seed in range(20):
        (simulated,) = benchmark.simulate(
            lambda _: (0.8, 0.6), rule=rule, share=0.25, canaries=1, episodes=300, seed=seed
        ).episodes
        random, test = np.random.default_rng(seed), SequentialTest(rule, share=0.25)
        verdict, episodes = Verdict.UNDECIDED, 0
        while verdict is Verdict.UNDECIDED and episodes < 300:
            live, candidate = int(random.binomial(3, 0.8, 1)[0]), bool(random.binomial(1, 0.6, 1)[0])
            for number in range(3):
                test.record(is_candidate=False, reached=number < live)
            verdict = test.record(is_candidate=True, reached=candidate)
            episodes += 1
        assert episodes == simulated
