"""When another batch is worth beginning, and how large it is: times and numbers worked out by hand."""

import math

import pytest

from serving.batching.in_flight import InFlightBatches
from serving.engine.engine import Kind
from tests.serving.timed import Timed

NOW_S = 100.0


def timed(max_concurrency: int, *, row_s: float = 0.1) -> Timed:
    """Batches of at most 64 rows, full from 8 on."""
    return Timed(max_concurrency, max_rows=64, full_rows=8, row_s=row_s)


def idle_loop(max_concurrency: int) -> InFlightBatches:
    """InFlightBatches beside an event loop that does nothing."""
    return InFlightBatches(timed(max_concurrency), loop_share=lambda _: 0.0)


def test_one_row_is_enough_for_an_idle_engine() -> None:
    assert idle_loop(3).enough_rows(NOW_S) == 1


def test_beside_a_short_batch_another_must_be_full() -> None:
    max_concurrency = idle_loop(2)
    max_concurrency.begin(Kind.ACT, 8, now_s=NOW_S)  # 0.8 s: not longer than eight times what a row takes
    assert max_concurrency.enough_rows(NOW_S) == 8


def test_a_lone_row_does_not_wait_for_a_long_batch_or_an_overdue_one_if_a_lane_is_free() -> None:
    max_concurrency = idle_loop(2)
    max_concurrency.begin(Kind.SCORE, 10, now_s=NOW_S)  # 1 s; what one row takes, eight times, is 0.8 s
    assert max_concurrency.enough_rows(NOW_S + 0.19) == 1
    assert max_concurrency.enough_rows(NOW_S + 0.21) == 8  # now it ends soon enough
    assert max_concurrency.enough_rows(NOW_S + 1.79) == 8
    assert max_concurrency.enough_rows(NOW_S + 1.81) == 1  # nobody knows when it will
    assert max_concurrency.ask_again_s(NOW_S + 0.21) == pytest.approx(1.59)
    assert max_concurrency.ask_again_s(NOW_S + 1.81) == 0


def test_a_batch_of_a_fast_policy_is_overdue_only_after_20_ms() -> None:
    max_concurrency = InFlightBatches(timed(2, row_s=0.0001), loop_share=lambda _: 0.0)
    max_concurrency.begin(Kind.ACT, 8, now_s=NOW_S)
    assert max_concurrency.enough_rows(NOW_S + 0.0207) == 8
    assert max_concurrency.enough_rows(NOW_S + 0.0209) == 1
    assert max_concurrency.ask_again_s(NOW_S) == pytest.approx(0.0208)


def test_of_several_batches_the_one_that_ends_first_counts() -> None:
    max_concurrency = idle_loop(3)
    max_concurrency.begin(Kind.ACT, 64, now_s=NOW_S)
    max_concurrency.begin(Kind.ACT, 2, now_s=NOW_S)
    assert max_concurrency.enough_rows(NOW_S) == 8


@pytest.mark.parametrize("number", [1, 2])
def test_no_number_of_rows_is_enough_while_no_lane_is_free(number: int) -> None:
    max_concurrency = idle_loop(number)
    batches = [max_concurrency.begin(Kind.ACT, 64, now_s=NOW_S) for _ in range(number)]
    assert max_concurrency.enough_rows(NOW_S) == math.inf
    max_concurrency.end(batches[0])
    assert max_concurrency.enough_rows(NOW_S) == 1
    assert len(max_concurrency) == number - 1


def test_only_an_end_brings_a_lane_if_all_are_in_use() -> None:
    max_concurrency = idle_loop(1)
    assert max_concurrency.next_end_s == -math.inf
    max_concurrency.begin(Kind.ACT, 4, now_s=NOW_S)
    assert max_concurrency.next_end_s == pytest.approx(NOW_S + 0.4)
    assert (max_concurrency.free(NOW_S), max_concurrency.ask_again_s(NOW_S)) == (0, math.inf)


def test_free_lanes_share_what_waits_in_powers_of_two_but_not_below_a_full_batch() -> None:
    max_concurrency = idle_loop(2)
    assert [max_concurrency.most_rows(rows, now_s=NOW_S) for rows in (1, 16, 31, 32, 90, 128, 1000)] == [
        8,
        8,
        8,
        16,
        32,
        64,
        64,
    ]
    max_concurrency.begin(Kind.ACT, 64, now_s=NOW_S)
    assert [max_concurrency.most_rows(rows, now_s=NOW_S) for rows in (1, 16, 31, 32, 64)] == [8, 16, 16, 32, 64]


def test_what_is_under_way_is_counted_as_of_now() -> None:
    max_concurrency = idle_loop(3)
    assert (max_concurrency.left_s(NOW_S), max_concurrency.company(Kind.ACT)) == (0, 0)
    max_concurrency.begin(Kind.ACT, 10, now_s=NOW_S)
    max_concurrency.begin(Kind.ACT, 20, now_s=NOW_S)
    max_concurrency.begin(Kind.SCORE, 30, now_s=NOW_S)
    assert max_concurrency.left_s(NOW_S) == pytest.approx(1 + 2 + 3)
    assert max_concurrency.left_s(NOW_S + 1.5) == pytest.approx(0 + 0.5 + 1.5)
    assert (
        max_concurrency.company(Kind.ACT),
        max_concurrency.company(Kind.SCORE),
        max_concurrency.company(Kind.SAMPLE),
    ) == (20, 30, 0)


def test_a_busy_event_loop_takes_a_lane_but_not_the_last() -> None:
    share = 0.5
    two, one = (InFlightBatches(timed(number), loop_share=lambda _: share) for number in (2, 1))
    assert (two.number(NOW_S), one.number(NOW_S)) == (2, 1)
    share = 0.51
    assert (two.number(NOW_S), one.number(NOW_S)) == (1, 1)
    assert two.most_rows(64, now_s=NOW_S) == 64
    two.begin(Kind.ACT, 64, now_s=NOW_S)
    assert two.enough_rows(NOW_S) == math.inf
    assert two.ask_again_s(NOW_S) == 0.02  # by then the loop may be idle
    share = 0.5
    assert two.enough_rows(NOW_S) == 1
    two.begin(Kind.ACT, 64, now_s=NOW_S)
    share = 0.51  # with both in use
    assert two.enough_rows(NOW_S) == math.inf
