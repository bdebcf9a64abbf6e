"""Which calls are let into a waiting line: times and numbers worked out by hand."""

import asyncio
from typing import cast

import numpy as np
import pytest

from serving.batching.admission import Admission, Limits
from serving.batching.in_flight import InFlightBatches
from serving.batching.queue import InferenceResult, QueuedRequest, RequestQueue
from serving.engine.engine import Kind
from tests.serving.timed import Timed

NOW_S = 100.0


class Door:
    """An admission, the line that it guards, and a clock that stands still."""

    def __init__(self, *, max_concurrency: int = 1, **limits: float) -> None:
        self.line = RequestQueue()
        engine = Timed(max_concurrency, max_rows=8, full_rows=8)
        self.max_concurrency = InFlightBatches(engine, loop_share=lambda _: 0.0)
        self.admission = Admission(self.line, self.max_concurrency, engine, Limits(queue_rows=24, **limits))
        self.now_s = NOW_S

    def join(self, rows: int, *, kind: Kind = Kind.ACT, priority: int = 0) -> None:
        nobody = cast("asyncio.Future[InferenceResult]", None)  # waits for the answer
        call = QueuedRequest(
            np.zeros((rows, 1), np.float32),
            kind=kind,
            admitted_s=self.now_s,
            deadline_s=np.inf,
            priority=priority,
            answer=nobody,
        )
        self.line.join(call)

    def judge(self, rows: int, *, left_s: float, priority: int = 0) -> str | None:
        deadline_s = self.now_s + left_s
        shed = self.admission.judge(rows, kind=Kind.ACT, priority=priority, now_s=self.now_s, deadline_s=deadline_s)
        return shed and shed.problem

    def judge_unread(self, *, left_s: float) -> str | None:
        shed = self.admission.judge_unread(Kind.ACT, now_s=self.now_s, deadline_s=self.now_s + left_s)
        return shed and shed.problem


@pytest.fixture
def door() -> Door:
    return Door()


def test_an_idle_server_lets_everybody_in(door: Door) -> None:
    assert door.judge(8, left_s=0.001) is None
    assert not door.admission.crowded(NOW_S)


def test_a_call_has_the_company_in_its_batch_that_calls_have_in_the_one_under_way(door: Door) -> None:
    under_way = door.max_concurrency.begin(Kind.ACT, 6, now_s=NOW_S)
    door.now_s += 0.25
    # 0.35 s are left of it, and 0.6 s are for a batch of six rows, though the call has but one; and a quarter more.
    assert door.judge(1, left_s=1.18) == "the answer would take up to 1.1875 s, and 1.1800 s are left"
    assert door.judge(1, left_s=1.19) is None
    assert door.judge(8, left_s=1.43) == "the answer would take up to 1.4375 s, and 1.4300 s are left"
    door.now_s += 1.0  # the batch takes longer than it should: it may end at any moment
    assert door.judge(1, left_s=0.74) == "the answer would take up to 0.7500 s, and 0.7400 s are left"
    door.max_concurrency.end(under_way)
    assert door.judge(1, left_s=0.001) is None


def test_company_is_of_the_same_kind(door: Door) -> None:
    door.max_concurrency.begin(Kind.SCORE, 6, now_s=NOW_S)
    assert door.judge(1, left_s=0.88) is None  # 0.75 for the scores, 0.125 for itself
    assert door.judge(1, left_s=0.87) is not None


def test_the_rows_before_a_call_are_computed_in_full_batches(door: Door) -> None:
    door.join(9)
    assert (
        door.judge(2, left_s=1.374) == "the answer would take up to 1.3750 s, and 1.3740 s are left"
    )  # 8 rows, then 3
    assert door.judge(2, left_s=0.26, priority=1) is None  # nobody of its priority is before it
    assert door.judge(15, left_s=10) is None
    assert door.judge(16, left_s=10) == "9 of 24 rows are waiting already"


def test_lanes_share_what_is_before_a_call_and_not_its_own_batch() -> None:
    door = Door(max_concurrency=2)
    door.max_concurrency.begin(Kind.ACT, 4, now_s=NOW_S)
    door.max_concurrency.begin(Kind.ACT, 2, now_s=NOW_S)
    # 0.4 s and 0.2 s under way are 0.3 s for each lane, then 0.4 s for a batch of four rows; and a quarter more.
    assert door.judge(1, left_s=0.87) == "the answer would take up to 0.8750 s, and 0.8700 s are left"
    door.join(8)
    # A batch of eight more before it: half of 0.4 + 0.2 + 0.8, then 0.4.
    assert door.judge(1, left_s=1.37) == "the answer would take up to 1.3750 s, and 1.3700 s are left"
    assert door.judge(1, left_s=1.38) is None


def test_a_call_that_begins_at_once_on_a_free_lane_waits_for_nobody() -> None:
    door = Door(max_concurrency=2)
    door.max_concurrency.begin(Kind.ACT, 8, now_s=NOW_S)
    assert door.judge(8, left_s=0.99) == "the answer would take up to 1.0000 s, and 0.9900 s are left"
    assert door.judge(8, left_s=1.01) is None
    assert door.judge(1, left_s=0.13) is None  # too few to be worth a lane, but it gets one if it must
    door.join(2)
    assert door.judge(1, left_s=0.37) == "the answer would take up to 0.3750 s, and 0.3700 s are left"
    assert door.judge(1, left_s=0.38) is None
    door.line.leave(door.line.head())
    door.max_concurrency.begin(Kind.ACT, 8, now_s=NOW_S)
    assert door.judge(8, left_s=1.99) == "the answer would take up to 2.0000 s, and 1.9900 s are left"


def test_a_call_of_more_rows_than_a_batch_is_reckoned_in_batches() -> None:
    door = Door(max_concurrency=2)
    door.max_concurrency.begin(Kind.ACT, 8, now_s=NOW_S)
    # 0.8 s under way and 0.8 s for its first batch, on two threads, then 0.8 s for its last; a quarter more.
    assert door.judge(9, left_s=1.99) == "the answer would take up to 2.0000 s, and 1.9900 s are left"
    assert door.judge(9, left_s=2.01) is None


def test_an_unread_call_is_shed_if_one_row_of_the_usual_priority_would_be(door: Door) -> None:
    door.join(8)
    assert door.judge_unread(left_s=1.12) == "the answer would take up to 1.1250 s, and 1.1200 s are left"
    assert door.judge_unread(left_s=1.13) is None  # though one of more rows will be shed once it is read
    assert door.judge(2, left_s=1.13) is not None
    door.join(16)
    assert door.judge_unread(left_s=100) == "24 of 24 rows are waiting already"


def test_every_call_is_read_for_a_minute_after_an_urgent_one(door: Door) -> None:
    door.join(8)
    door.judge(1, left_s=1, priority=1)
    door.now_s += 59.9
    assert door.judge_unread(left_s=0.5) is None
    door.now_s += 0.2
    assert door.judge_unread(left_s=0.5) is not None


def test_there_is_a_crowd_for_a_second_after_a_call_was_shed_read_or_not(door: Door) -> None:
    door.join(8)
    assert door.judge(1, left_s=10) is None
    assert not door.admission.crowded(NOW_S)
    door.judge(1, left_s=1)
    assert door.admission.crowded(NOW_S + 0.9)
    assert not door.admission.crowded(NOW_S + 1.1)
    door.now_s += 5
    door.judge_unread(left_s=1)
    assert door.admission.crowded(NOW_S + 5.9)


def test_nobody_joins_behind_a_call_that_has_waited_too_long() -> None:
    door = Door(queue_age_s=0.5)
    door.join(1)
    door.now_s += 0.6
    assert door.judge(1, left_s=100) == door.judge_unread(left_s=100) == "calls have waited for 0.600 s"
