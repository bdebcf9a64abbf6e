"""When a batch is dispatched, and which rows it holds: times and numbers worked out by hand."""

import math

import pytest

from serving.batching.in_flight import InFlightBatches
from serving.batching.load import Load
from serving.batching.queue import QueuedRequest, RequestQueue
from serving.batching.scheduler import BatchingPolicy, Decision, Dispatch, Idle, Scheduler, WaitUntil
from serving.engine.engine import Kind
from tests.serving.timed_engine import NOW_S, TimedEngine, in_flight, request

IDLE, HALF, FULL = Load(0.0, 0.0), Load(0.7, 0.0), Load(0.9, 0.0)  # no delay, half of it, all of it


def decide(
    *requests: QueuedRequest,
    engine: TimedEngine | None = None,
    flying: InFlightBatches | None = None,
    load: Load = IDLE,
    now_s: float = NOW_S,
    is_draining: bool = False,
    max_batch_delay_s: float = 0.0,
) -> Decision:
    queue = RequestQueue()
    for each in requests:
        queue.push(each)
    policy = BatchingPolicy(max_queue_rows=1000, max_queue_age_s=math.inf, max_batch_delay_s=max_batch_delay_s)
    flying = InFlightBatches() if flying is None else flying
    return Scheduler(engine or TimedEngine(), policy).decide(now_s, queue, flying, load, is_draining=is_draining)


def wait_until(time_s: float) -> WaitUntil:
    """A wait for a full batch, to be compared with a decision."""
    return WaitUntil(pytest.approx(time_s), rows=8)  # pyright: ignore[reportArgumentType]


def taken(decision: Decision) -> list[int]:
    """Rows that are taken from each request."""
    assert isinstance(decision, Dispatch)
    return [rows for _, rows in decision.takes]


# Concurrency


def test_an_empty_queue_is_idle_until_a_row_arrives() -> None:
    assert decide() == Idle(rows=1)


def test_an_idle_engine_computes_a_lone_row_immediately() -> None:
    assert taken(decide(request(), max_batch_delay_s=1.0)) == [1]


@pytest.mark.parametrize("concurrency", [1, 2])
def test_only_the_end_of_a_batch_makes_room_when_all_are_in_flight(concurrency: int) -> None:
    engine = TimedEngine(max_concurrency=concurrency)
    flying = in_flight(*[(Kind.ACT, 64)] * concurrency, engine=engine)
    assert decide(request(64), engine=engine, flying=flying, is_draining=True) == Idle(rows=math.inf)


def test_a_busy_event_loop_keeps_one_core_but_never_the_last() -> None:
    two, one = TimedEngine(max_concurrency=2), TimedEngine(max_concurrency=1)
    flying = in_flight((Kind.ACT, 64), engine=two)
    assert taken(decide(request(8), engine=two, flying=flying, load=Load(0.0, 0.5))) == [8]
    # Its load is read again after 20 ms; no number of rows makes room sooner.
    assert decide(request(8), engine=two, flying=flying, load=Load(0.0, 0.51)) == WaitUntil(NOW_S + 0.02, math.inf)
    assert taken(decide(request(8), engine=one, load=Load(0.0, 0.99))) == [8]


# Waiting for a batch in flight that is about to end


@pytest.mark.parametrize(
    ("later_s", "waits"),
    [
        (0.19, False),  # 1.0 s of a batch of 10 rows, and 8 single-row batches take 0.8 s
        (0.21, True),
        (1.79, True),  # it is overdue, by less than 0.8 s
        (1.80, False),
    ],
)
def test_few_rows_wait_for_a_batch_that_ends_soon_but_not_for_a_long_or_late_one(later_s: float, waits: bool) -> None:
    engine = TimedEngine(max_concurrency=2)
    flying = in_flight((Kind.SCORE, 10), engine=engine)
    decision = decide(request(7, queued_s=NOW_S), engine=engine, flying=flying, now_s=NOW_S + later_s)
    if waits:
        assert decision == wait_until(NOW_S + 1.8)
    else:
        assert taken(decision) == [7]


def test_a_full_batch_does_not_wait_for_another_to_end() -> None:
    engine = TimedEngine(max_concurrency=2)
    assert taken(decide(request(8), engine=engine, flying=in_flight((Kind.ACT, 8), engine=engine))) == [8]


def test_a_batch_of_a_fast_policy_is_overdue_only_after_20_ms() -> None:
    engine = TimedEngine(max_concurrency=2, row_s=0.0001)
    flying = in_flight((Kind.ACT, 8), engine=engine)
    assert decide(request(), engine=engine, flying=flying) == wait_until(NOW_S + 0.0208)


def test_of_several_batches_the_one_that_ends_first_counts() -> None:
    engine = TimedEngine(max_concurrency=3)
    flying = in_flight((Kind.ACT, 64), (Kind.ACT, 2), engine=engine)
    assert decide(request(), engine=engine, flying=flying) == wait_until(NOW_S + 1.0)


def test_a_request_that_would_be_late_does_not_wait_for_the_batch_in_flight() -> None:
    engine = TimedEngine(max_concurrency=2)
    flying = in_flight((Kind.ACT, 8), engine=engine)  # ends in 0.8 s
    # A full batch takes 0.8 s, 1.0 s with the margin of a quarter.
    assert taken(decide(request(left_s=1.79), engine=engine, flying=flying)) == [1]
    # It must start 0.82 s from now, before the batch in flight is overdue at 1.6 s.
    assert decide(request(left_s=1.82), engine=engine, flying=flying) == wait_until(NOW_S + 0.82)


def test_the_tightest_deadline_in_the_queue_counts() -> None:
    engine = TimedEngine(max_concurrency=2)
    flying = in_flight((Kind.ACT, 8), engine=engine)
    decision = decide(request(), request(left_s=1.79), request(left_s=50), engine=engine, flying=flying)
    assert taken(decision) == [1, 1, 1]


def test_the_rest_of_a_split_request_does_not_wait() -> None:
    engine = TimedEngine(max_concurrency=2)
    split = request(9)
    split.taken = 8
    decision = decide(split, engine=engine, flying=in_flight((Kind.ACT, 8), engine=engine), load=FULL)
    assert taken(decision) == [1]


def test_nothing_waits_while_the_server_drains() -> None:
    engine = TimedEngine(max_concurrency=2)
    flying = in_flight((Kind.ACT, 8), engine=engine)
    decision = decide(request(), engine=engine, flying=flying, load=FULL, is_draining=True, max_batch_delay_s=5.0)
    assert taken(decision) == [1]


# The batch delay


@pytest.mark.parametrize(
    ("load", "delay_s"),
    [
        (Load(0.5, 0.0), 0),
        (Load(0.6, 0.2), 0.5),  # (0.6 - 0.5) / 0.4 of 2 s
        (Load(0.1, 0.7), 1.0),  # a busy event loop counts as much
        (Load(0.9, 0.0), 2.0),
        (Load(1.0, 1.0), 2.0),
    ],
)
def test_the_delay_grows_from_half_load_to_nine_tenths(load: Load, delay_s: float) -> None:
    decision = decide(request(), load=load, max_batch_delay_s=2.0)
    if delay_s:
        assert decision == wait_until(NOW_S + delay_s)
    else:
        assert taken(decision) == [1]


def test_the_delay_starts_when_the_batch_could_have_started() -> None:
    flying = InFlightBatches()
    flying.last_end_s = NOW_S - 0.25
    waiting = request(queued_s=NOW_S - 9)  # it waited for the batch that ended a quarter of a second ago
    assert decide(waiting, flying=flying, load=FULL, max_batch_delay_s=1.0) == WaitUntil(NOW_S + 0.75, rows=8)
    new = request(queued_s=NOW_S - 0.1)
    assert decide(new, flying=flying, load=FULL, max_batch_delay_s=1.0) == WaitUntil(NOW_S + 0.9, rows=8)
    assert taken(decide(new, flying=flying, load=FULL, max_batch_delay_s=1.0, now_s=NOW_S + 0.9)) == [1]


def test_the_delay_ends_while_a_full_batch_would_still_meet_every_deadline() -> None:
    hurried = request(left_s=1.4)  # and a full batch takes 0.8 s, 1.0 s with the margin
    assert decide(request(), hurried, load=FULL, max_batch_delay_s=2.0) == wait_until(NOW_S + 0.4)
    assert taken(decide(request(), request(left_s=0.9), load=FULL, max_batch_delay_s=2.0)) == [1, 1]


def test_the_delay_ends_in_time_for_a_slower_kind_behind_the_first_request() -> None:
    class SlowScores(TimedEngine):
        def expected_s(self, kind: Kind, rows: int) -> float:
            return super().expected_s(kind, rows) * (10 if kind is Kind.SCORE else 1)

    scored = request(kind=Kind.SCORE, left_s=11)  # and a full batch takes 8 s, 10 s with the margin
    assert decide(request(), scored, engine=SlowScores(), load=FULL, max_batch_delay_s=2.0) == wait_until(NOW_S + 1)


def test_a_full_batch_is_not_delayed() -> None:
    assert taken(decide(request(5), request(3), load=FULL, max_batch_delay_s=2.0)) == [5, 3]


# What a batch holds


@pytest.mark.parametrize(
    ("waiting", "flying_rows", "largest"),
    [
        (16, (), 8),
        (31, (), 8),
        (32, (), 16),
        (90, (), 32),
        (128, (), 64),
        (1000, (), 64),
        (31, (64,), 16),
        (64, (64,), 64),
    ],
)
def test_batches_that_can_start_together_share_the_queue_in_powers_of_two_but_stay_full(
    waiting: int, flying_rows: tuple[int, ...], largest: int
) -> None:
    engine = TimedEngine(max_concurrency=2)
    flying = in_flight(*((Kind.ACT, rows) for rows in flying_rows), engine=engine)
    assert taken(decide(request(waiting), engine=engine, flying=flying)) == [largest]


def test_one_busy_event_loop_and_one_batch_take_the_whole_queue() -> None:
    assert taken(decide(request(64), engine=TimedEngine(max_concurrency=2), load=Load(0.0, 0.6))) == [64]


def test_a_request_is_split_rather_than_overtaken() -> None:
    assert taken(decide(request(60), request(7), request(1), engine=TimedEngine(full_rows=64))) == [60, 4]


def test_rows_go_by_priority_then_by_arrival() -> None:
    first, second, urgent, most_urgent = request(), request(), request(priority=1), request(priority=3)
    decision = decide(first, second, urgent, most_urgent)
    assert isinstance(decision, Dispatch)
    assert [each for each, _ in decision.takes] == [most_urgent, urgent, first, second]


def test_an_urgent_batch_is_filled_with_less_urgent_rows_only_until_it_is_full() -> None:
    engine = TimedEngine(full_rows=4, max_rows=8)
    assert taken(decide(request(7), request(priority=2), request(priority=2), engine=engine)) == [1, 1, 2]
    assert taken(decide(request(7), request(6, priority=2), engine=engine)) == [6]


def test_large_requests_of_another_connection_fill_a_batch_only_until_it_is_full() -> None:
    engine = TimedEngine(full_rows=4, max_rows=16)
    flood, robot = request(30, connection="flood"), request(1, connection="robot")
    assert taken(decide(robot, flood, engine=engine)) == [1, 3]
    assert taken(decide(flood, robot, engine=engine)) == [16]
    small = [request(2, connection=str(number)) for number in range(8)]
    assert taken(decide(*small, engine=engine)) == [2] * 8


def test_a_priority_that_was_passed_over_gets_one_full_batch() -> None:
    engine, queue = TimedEngine(full_rows=4, max_rows=16), RequestQueue()
    low, high = request(30), request(30, priority=1)
    for each in (low, high):
        queue.push(each)
    policy = BatchingPolicy(max_queue_rows=1000, max_queue_age_s=math.inf, max_batch_delay_s=0.0)
    batches = []
    for _ in range(2):
        for _ in range(8):
            queue.record_batch({1})
        decision = Scheduler(engine, policy).decide(NOW_S, queue, InFlightBatches(), IDLE)
        assert isinstance(decision, Dispatch)
        batches.append(decision.takes)
        queue.record_batch({0})
    assert batches == [[(low, 4)]] * 2
    decision = Scheduler(engine, policy).decide(NOW_S, queue, InFlightBatches(), IDLE)
    assert isinstance(decision, Dispatch)
    assert decision.takes == [(high, 16)]


def test_a_batch_holds_one_kind() -> None:
    assert taken(decide(request(2), request(3, kind=Kind.SCORE), request(1))) == [2]


# Requests that are not computed


def expired(decision: Decision) -> list[QueuedRequest]:
    assert isinstance(decision, Dispatch)
    return list(decision.expired)


def test_a_request_whose_deadline_passed_or_whose_caller_is_gone_expires() -> None:
    late, gone, kept = request(left_s=-0.001), request(done=True), request()
    decision = decide(late, gone, kept)
    assert expired(decision) == [late, gone]
    assert taken(decision) == [1]
    assert decide(late) == Dispatch([], [late])


def test_a_request_expires_if_its_batch_would_be_late_for_it() -> None:
    hurried, others = request(left_s=0.35), request(3)
    decision = decide(hurried, others)  # four rows take 0.4 s
    assert (expired(decision), taken(decision)) == ([hurried], [3])
    assert taken(decide(request(left_s=0.45), others)) == [1, 3]


def test_rows_of_another_connection_beyond_a_full_batch_make_no_request_late() -> None:
    engine = TimedEngine(full_rows=4, max_rows=16)  # a full batch takes 0.4 s
    robot, flood = request(left_s=0.5, connection="robot"), request(30, connection="flood")
    decision = decide(robot, flood, engine=engine)
    assert (taken(decision), expired(decision)) == ([1, 3], [])
    assert expired(decide(request(left_s=0.4, connection="robot"), flood, engine=engine))


def test_a_request_behind_one_that_is_split_is_not_expired_by_a_batch_that_has_no_room_for_it() -> None:
    engine = TimedEngine(max_concurrency=2, full_rows=4)  # the other core can compute the last one immediately
    decision = decide(request(2, priority=1), request(30), request(left_s=0.5), engine=engine)
    assert (taken(decision), expired(decision)) == ([2, 2], [])


def test_rows_of_another_kind_make_no_batch_slower() -> None:
    decision = decide(request(left_s=0.15), request(7, kind=Kind.SCORE))
    assert taken(decision) == [1]


def test_an_estimate_does_not_expire_a_request_that_nothing_could_replace() -> None:
    assert taken(decide(request(5, left_s=0.1))) == [5]


def test_expired_rows_do_not_count_for_the_requests_behind_them() -> None:
    late, hurried = request(7, left_s=-1), request(left_s=0.15)
    assert expired(decide(late, hurried)) == [late]
    assert taken(decide(late, hurried)) == [1]


# Exact boundaries, with times that floats hold exactly: a row takes 1/8 s, a full batch 1 s, 1.25 s with the margin


@pytest.mark.parametrize(("later_s", "waits"), [(0.125, False), (0.25, True), (2.125, True), (2.25, False)])
def test_a_wait_begins_at_its_first_moment_and_ends_at_its_last(later_s: float, waits: bool) -> None:
    engine = TimedEngine(max_concurrency=2, row_s=0.125)
    flying = in_flight((Kind.SCORE, 10), engine=engine)  # ends 1.25 s from NOW_S; 8 single-row batches take 1 s
    decision = decide(request(), engine=engine, flying=flying, now_s=NOW_S + later_s)
    if waits:
        assert decision == WaitUntil(NOW_S + 2.25, rows=8)
    else:
        assert taken(decision) == [1]


def test_a_request_that_can_start_just_when_a_batch_ends_waits_for_it() -> None:
    engine = TimedEngine(max_concurrency=2, row_s=0.125)
    flying = in_flight((Kind.SCORE, 8), engine=engine)
    assert decide(request(left_s=2.25), engine=engine, flying=flying) == WaitUntil(NOW_S + 1.0, rows=8)
    assert taken(decide(request(left_s=2.125), engine=engine, flying=flying)) == [1]


def test_fewer_rows_than_free_threads_are_one_batch() -> None:
    assert taken(decide(request(), engine=TimedEngine(max_concurrency=3))) == [1]


def test_a_full_batch_leaves_the_requests_behind_it_as_they_are() -> None:
    decision = decide(request(64), request(left_s=-1))
    assert (taken(decision), expired(decision)) == ([64], [])


def test_a_deadline_that_ends_now_has_passed() -> None:
    late = request(left_s=0.0)
    assert decide(late) == Dispatch([], [late])


def test_rows_of_another_kind_in_the_batch_do_not_make_a_request_late() -> None:
    scores = request(2, kind=Kind.SCORE, left_s=0.25)  # 0.2 s by themselves
    decision = decide(request(3), scores)
    assert (taken(decision), expired(decision)) == ([3], [])
