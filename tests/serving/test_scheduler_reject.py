"""Which requests are rejected on arrival: times and numbers worked out by hand.

A row takes 0.1 s, a batch holds 8 rows, and estimates have a margin of a quarter.
"""

import math

from serving.batching.in_flight import InFlightBatches
from serving.batching.load import Load
from serving.batching.queue import QueuedRequest, RequestQueue
from serving.batching.scheduler import Arrival, BatchingPolicy, Scheduler
from serving.engine.engine import Kind
from tests.serving.timed_engine import NOW_S, TimedEngine, in_flight, request

ONE, TWO = TimedEngine(max_rows=8), TimedEngine(max_rows=8, max_concurrency=2)


def reject(
    arriving: QueuedRequest,
    *queued: QueuedRequest,
    engine: TimedEngine = ONE,
    flying: InFlightBatches | None = None,
    load: Load = Load(),  # noqa: B008  immutable
    max_queue_age_s: float = math.inf,
) -> str | None:
    """The problem that `arriving` is rejected with, or None."""
    queue = RequestQueue()
    for each in queued:
        queue.push(each)
    policy = BatchingPolicy(max_queue_rows=24, max_queue_age_s=max_queue_age_s, max_batch_delay_s=0.0)
    scheduler = Scheduler(engine, policy)
    flying = InFlightBatches() if flying is None else flying
    arrival = Arrival(
        arriving.queued_s,
        arriving.deadline_s,
        len(arriving.rows),
        arriving.kind,
        arriving.priority,
        arriving.connection,
    )
    rejection = scheduler.reject(arrival, queue, flying, event_loop_load=load.event_loop)
    return rejection and f"{rejection.reason}: {rejection.problem}"


def too_short(left_s: float, needed_s: float) -> str:
    return f"deadline_too_short: the deadline is in {left_s:.4f} s, and the answer would take up to {needed_s:.4f} s"


def idle_since(ended_s: float) -> InFlightBatches:
    """No batch, but one that ended at `ended_s`."""
    flying = InFlightBatches()
    flying.last_end_s = ended_s
    return flying


def test_an_idle_server_that_has_not_computed_for_a_second_admits_every_request() -> None:
    assert reject(request(8, left_s=0.001)) is None
    assert reject(request(24)) is None
    assert reject(request(8, left_s=0.001), flying=idle_since(NOW_S - 1.0)) is None


def test_an_idle_server_that_has_just_computed_rejects_only_what_has_less_than_half_of_the_time() -> None:
    # Eight rows take 0.8 s, 1.0 s with the margin.
    recent = idle_since(NOW_S - 0.99)
    assert reject(request(8, left_s=0.39), flying=recent) == too_short(0.39, 1.0)
    assert reject(request(8, left_s=0.41), flying=recent) is None
    assert reject(request(8), flying=recent) is None


def test_the_queue_holds_so_many_rows_and_no_more() -> None:
    assert reject(request(15), request(9)) is None
    assert reject(request(16), request(9)) == "queue_full: the queue is full: 9 of 24 rows wait"


def test_a_full_queue_has_an_eighth_more_for_connections_with_at_most_an_eighth() -> None:
    flood = request(24, connection="flood")
    full = "queue_full: the queue is full: 24 of 24 rows wait"
    assert reject(request(3, connection="robot"), flood) is None
    assert reject(request(4, connection="robot"), flood) == full
    assert reject(request(1, connection="flood"), flood) == full
    one = request(1, connection="robot")
    assert reject(request(2, connection="robot"), flood, one) is None
    fuller = "queue_full: the queue is full: 25 of 24 rows wait"
    assert reject(request(3, connection="robot"), flood, one) == fuller
    assert reject(request(3, connection="other"), flood, one) == fuller


def test_the_age_of_requests_of_larger_connections_does_not_count() -> None:
    flood = request(8, connection="flood", queued_s=NOW_S - 0.6)
    problem = "queue_age: the queue is too slow: a request has waited for 0.600 s"
    assert reject(request(7, connection="robot"), flood, max_queue_age_s=0.5) is None
    assert reject(request(8, connection="robot"), flood, max_queue_age_s=0.5) == problem
    assert reject(request(1, connection="flood"), flood, max_queue_age_s=0.5) == problem


def test_of_another_connection_only_as_many_rows_are_ahead_as_its_own_has() -> None:
    flood, overdue = request(20, connection="flood"), in_flight((Kind.ACT, 1), engine=ONE, dispatched_s=NOW_S - 9)
    # One row of the flood is ahead, so its own row is in the first batch, with two rows: 0.2 s, and a quarter more.
    assert reject(request(left_s=0.24, connection="robot"), flood, flying=overdue) == too_short(0.24, 0.25)
    assert reject(request(left_s=0.26, connection="robot"), flood, flying=overdue) is None
    # Of its own connection, 20 rows are ahead: two full batches and one of five rows.
    assert reject(request(left_s=2.6, connection="flood"), flood, flying=overdue) == too_short(2.6, 2.625)


def test_no_request_joins_a_queue_in_which_one_has_waited_too_long() -> None:
    old = request(queued_s=NOW_S - 0.6)
    problem = "queue_age: the queue is too slow: a request has waited for 0.600 s"
    assert reject(request(), old, max_queue_age_s=0.59) == problem
    assert reject(request(), old, max_queue_age_s=0.61) is None
    old.taken = 1  # a part of it is being computed: the queue moves
    assert reject(request(), old, max_queue_age_s=0.59) is None


def test_a_request_without_a_deadline_is_not_estimated() -> None:
    assert reject(request(), request(16)) is None


def test_its_batch_is_assumed_to_be_as_large_as_the_one_in_flight() -> None:
    flying = in_flight((Kind.ACT, 6), engine=ONE, dispatched_s=NOW_S - 0.25)
    # 0.35 s are left of it, then 0.6 s for six rows, though the request has one; and a quarter more.
    assert reject(request(left_s=1.18), flying=flying) == too_short(1.18, 1.1875)
    assert reject(request(left_s=1.19), flying=flying) is None
    assert reject(request(8, left_s=1.43), flying=flying) == too_short(1.43, 1.4375)


def test_an_overdue_batch_is_expected_to_end_any_moment() -> None:
    flying = in_flight((Kind.ACT, 6), engine=ONE, dispatched_s=NOW_S - 1.25)
    assert reject(request(left_s=0.74), flying=flying) == too_short(0.74, 0.75)
    assert reject(request(left_s=0.76), flying=flying) is None


def test_a_batch_of_another_kind_says_nothing_about_the_size() -> None:
    flying = in_flight((Kind.SCORE, 6), engine=ONE)
    assert reject(request(left_s=0.88), flying=flying) is None  # 0.75 for the scores, 0.125 for its own row
    assert reject(request(left_s=0.87), flying=flying) == too_short(0.87, 0.875)


def test_the_rows_ahead_are_computed_in_full_batches_by_kind() -> None:
    ahead = request(9)
    assert reject(request(2, left_s=1.374), ahead) == too_short(1.374, 1.375)  # 8 rows, then 3
    scores = request(2, kind=Kind.SCORE)
    assert reject(request(2, left_s=1.62), ahead, scores) == too_short(1.62, 1.625)  # and 0.2 s for the scores


def test_less_urgent_rows_are_not_ahead() -> None:
    assert reject(request(2, left_s=0.26, priority=1), request(9)) is None
    assert reject(request(2, left_s=0.24, priority=1), request(9)) == too_short(0.24, 0.25)


def test_batches_in_flight_together_share_what_is_ahead_but_not_its_own_batch() -> None:
    flying = in_flight((Kind.ACT, 4), (Kind.ACT, 2), engine=TWO)
    # Half of 0.4 + 0.2 s, then 0.4 s for a batch of four rows; and a quarter more.
    assert reject(request(left_s=0.87), engine=TWO, flying=flying) == too_short(0.87, 0.875)
    # With a batch of eight ahead: half of 0.4 + 0.2 + 0.8 s, then 0.4 s.
    assert reject(request(left_s=1.37), request(8), engine=TWO, flying=flying) == too_short(1.37, 1.375)
    assert reject(request(left_s=1.38), request(8), engine=TWO, flying=flying) is None


def test_a_batch_that_can_start_now_holds_the_request_and_what_is_queued() -> None:
    flying = in_flight((Kind.ACT, 8), engine=TWO)
    assert reject(request(8, left_s=0.99), engine=TWO, flying=flying) == too_short(0.99, 1.0)
    assert reject(request(8, left_s=1.01), engine=TWO, flying=flying) is None
    assert reject(request(left_s=0.37), request(2), engine=TWO, flying=flying) == too_short(0.37, 0.375)
    # A busy event loop keeps the core: 0.8 s in flight, then 0.8 s; and a quarter more.
    busy = Load(0.0, 0.6)
    assert reject(request(8, left_s=1.99), engine=TWO, flying=flying, load=busy) == too_short(1.99, 2.0)


def test_a_request_larger_than_a_batch_is_estimated_in_batches() -> None:
    flying = in_flight((Kind.ACT, 8), engine=TWO)
    # 0.8 s in flight and 0.8 s for its first batch, on two threads, then 0.8 s for its last; and a quarter more.
    assert reject(request(9, left_s=1.99), engine=TWO, flying=flying) == too_short(1.99, 2.0)
    assert reject(request(9, left_s=2.01), engine=TWO, flying=flying) is None


def test_a_request_that_just_fits_is_admitted() -> None:
    engine = TimedEngine(max_rows=8, row_s=0.125)  # times that floats hold exactly
    overdue = in_flight((Kind.SCORE, 1), engine=engine, dispatched_s=NOW_S - 9)
    assert reject(request(4, left_s=0.625), engine=engine, flying=overdue) is None
    assert reject(request(4, left_s=0.5), engine=engine, flying=overdue) == too_short(0.5, 0.625)
    assert reject(request(), request(queued_s=NOW_S - 0.5), max_queue_age_s=0.5) is None
