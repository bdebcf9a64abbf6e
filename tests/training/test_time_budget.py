"""What the measured times of a run's parts say, by hand; the run of conftest.py has 40 steps and 3 updates a round."""

from pathlib import Path

import pytest

from tests.training.fake_clock import FakeClock
from training.budgets.time_budget import TimeBudget, in_words


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def budget_of(tiny, clock: FakeClock, **changes) -> TimeBudget:
    return TimeBudget(tiny(Path("run"), **changes), clock=clock, began=0.0)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (276_480, "3.2 days"),
    ],
)
def test_a_duration_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_evaluations_take_a_fifth_of_the_time_with_the_last_one(tiny, clock) -> None:
    """After two evaluations of 10 s, four take a fifth of 200 s, the last two of them still to come."""
    budget = budget_of(tiny, clock, max_eval_share=0.2)
    for _ in range(2):
        budget.record("evaluate", 8.0)
        budget.record("keep", 2.0)
    clock.now = 100.0
    assert budget.eval_share == pytest.approx(0.2)
    clock.now = 189.0
    assert not budget.may_evaluate
    clock.now = 190.0  # 40 of 200 s
    assert budget.may_evaluate
    unlimited = budget_of(tiny, clock, max_eval_share=1.0)
    clock.now = 0.0
    assert unlimited.may_evaluate


def test_the_first_two_evaluations_are_never_left_out(tiny, clock) -> None:
    """Unrolls say nothing of an evaluation's time, and the first publication takes longer than the others."""
    for earlier_eval_s in (0.0, 100.0):
        budget = TimeBudget(
            tiny(Path("run"), max_eval_share=0.01), clock=clock, began=0.0, earlier_eval_s=earlier_eval_s
        )
        budget.record("collect", 4.0)
        clock.now = 20.0
        assert budget.evaluation_s == 8 + 2  # 4 x 20 steps instead of 40, and a guess for snapshot and publication
        assert budget.may_evaluate
        budget.record("evaluate", 1.0)
        assert budget.may_evaluate
        budget.record("evaluate", 1.0)
        assert not budget.may_evaluate


def test_what_a_resumed_run_took_before_counts(tiny, clock) -> None:
    budget = TimeBudget(tiny(Path("run")), clock=clock, began=0.0, earlier_s=90.0, earlier_eval_s=5.0)
    clock.now = 10.0
    assert budget.total_s == 100
    assert budget.eval_share == pytest.approx(0.05)


def test_the_time_is_up_while_the_last_evaluation_still_fits(tiny, clock) -> None:
    budget = budget_of(tiny, clock, max_minutes=2)
    for part, seconds in (("collect", 6.0), ("evaluate", 8.0), ("keep", 2.0)):
        budget.record(part, seconds)
    budget.record("update", 6.0, count=3)
    clock.now = 102.0  # 6 + 2 + 10 s until the end
    assert not budget.time_is_up(pending_updates=0)
    clock.now = 102.5
    assert budget.time_is_up(pending_updates=0)
    assert not budget.time_is_up(pending_updates=3)
    clock.now = 108.0
    assert not budget.time_is_up(pending_updates=1)
    clock.now = 108.5
    assert budget.time_is_up(pending_updates=1)


def test_the_longest_of_the_last_three_times_is_reckoned_with(tiny, clock) -> None:
    budget = budget_of(tiny, clock)
    for seconds in (90.0, 3.0, 5.0, 4.0):
        budget.record("evaluate", seconds)
    budget.record("keep", 1.0)
    assert budget.evaluation_s == 6


def test_a_snapshot_that_was_not_timed_is_reckoned_by_its_size(tiny, clock) -> None:
    budget = TimeBudget(tiny(Path("run")), clock=clock, began=0.0, snapshot_bytes=500_000_000)
    assert budget.evaluation_s == pytest.approx(2 + 5)


def test_a_slice_takes_five_seconds_and_less_before_the_end(tiny, clock) -> None:
    budget = budget_of(tiny, clock, updates_per_unroll=1000, max_minutes=2)
    assert budget.slice_updates(1000) == 1  # nothing is known
    budget.record("update", 0.5)
    assert budget.slice_updates(1000) == 10
    assert budget.slice_updates(4) == 4
    clock.now = 120 - 2 - 3  # 2 s for the first publication
    assert budget.slice_updates(1000) == 6
    clock.now = 500.0
    assert budget.slice_updates(1000) == 1


def test_the_time_left_by_hand(tiny, clock) -> None:
    """Four rounds of 1 + 3 x 2 s, two gradient steps of a fifth, and two evaluations of 10 s."""
    budget = budget_of(tiny, clock)
    budget.record("collect", 9.0)
    assert budget.steps_per_s is None  # nobody knows how much slower the first one was
    budget.record("collect", 1.0)
    assert budget.left_s(done=1, pending_updates=0) is None
    assert budget.steps_per_s == 40
    budget.record("update", 7.0)
    assert budget.left_s(done=2, pending_updates=2) is None
    assert budget.steps_per_s is None
    budget.record("update", 2.0)
    assert budget.left_s(done=2, pending_updates=2) == 32
    assert budget.steps_per_s == pytest.approx(40 / 7)
    budget.record("evaluate", 8.0)
    budget.record("keep", 2.0)
    assert budget.left_s(done=2, pending_updates=2) == 52
    limited = budget_of(tiny, clock, max_minutes=0.25)
    for _ in range(2):
        limited.record("update", 2.0)
    clock.now = 5.0
    assert limited.left_s(done=0, pending_updates=0) == 10


def test_the_first_measurement_of_a_part_counts_until_there_is_a_second_one(tiny, clock) -> None:
    budget = budget_of(tiny, clock, updates_per_unroll=1000)
    budget.record("update", 1.0)
    assert budget.slice_updates(1000) == 5
    budget.record("update", 4.0, count=20)
    assert budget.slice_updates(1000) == 25  # of 0.2 s each
    for seconds, longest in ((30.0, 30.0), (2.0, 2.0), (3.0, 3.0)):
        budget.record("keep", seconds)
        assert budget.evaluation_s == longest
