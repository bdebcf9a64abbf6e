"""The order of the queue: turns of connections, and priorities that are passed over. Numbers worked out by hand."""

import random
from collections import Counter

import pytest

from serving.batching.queue import QueuedRequest, RequestQueue
from serving.engine.engine import Kind
from tests.serving.timed_engine import NOW_S, request


def queue_of(*requests: QueuedRequest) -> RequestQueue:
    queue = RequestQueue()
    for each in requests:
        queue.push(each)
    return queue


def drain(queue: RequestQueue, *, rows: int) -> list[tuple[str, int]]:
    """Take up to `rows` rows at a time from the request that is next: of which connection, and how many."""
    taken = []
    while queue:
        first = queue.peek()
        part = queue.take(first, rows)
        queue.record_batch({first.priority})
        taken.append((first.connection, part.stop - part.start))
    return taken


def test_two_connections_take_turns_by_rows() -> None:
    flood = [request(8, connection="flood") for _ in range(3)]  # their turns are 0, 8, 16
    robot = [request(1, connection="robot") for _ in range(2)]  # 0, 1
    queue = queue_of(*flood, *robot)
    assert list(queue) == [flood[0], *robot[:1], robot[1], flood[1], flood[2]]
    # The flood's first four rows are of turn 0. Its other four are of turn 4, behind both rows of the robot.
    assert drain(queue, rows=4) == [("flood", 4), ("robot", 1), ("robot", 1), *[("flood", 4)] * 5]


def test_one_connection_is_served_in_the_order_of_arrival() -> None:
    requests = [request(rows) for rows in (3, 1, 7, 2)]
    assert list(queue_of(*requests)) == requests


def test_connections_with_one_request_each_are_served_in_the_order_of_arrival() -> None:
    requests = [request(number, connection=str(number)) for number in (5, 1, 9)]
    assert list(queue_of(*requests)) == requests


def test_a_connection_that_was_idle_gets_no_more_than_its_turn() -> None:
    flood = [request(4, connection="flood") for _ in range(4)]
    queue = queue_of(*flood)
    for each in flood[:2]:
        queue.take(each, 4)
    late = [request(4, connection="late") for _ in range(3)]  # from the present turn, 4, on: 4, 8, 12
    for each in late:
        queue.push(each)
    assert list(queue) == [late[0], flood[2], late[1], flood[3], late[2]]  # the flood's are 8 and 12


def test_three_connections_that_always_wait_get_equal_shares_whatever_the_size_of_their_requests() -> None:
    rng = random.Random(1)
    queue, served = RequestQueue(), Counter[str]()
    sizes = {"small": 1, "large": 60, "mixed": 17}
    for _ in range(5000):
        for connection, most in sizes.items():
            while queue.rows_of(connection) < 60:
                queue.push(request(rng.randint(1, most), connection=connection))
        first = queue.peek()
        part = queue.take(first, 8)
        served[first.connection] += part.stop - part.start
    mean = served.total() / 3
    assert all(abs(rows - mean) <= 2 * 60 for rows in served.values()), served


def test_a_priority_that_eight_batches_passed_over_is_next_for_one_batch() -> None:
    queue = queue_of(request(3, connection="low"), *(request(10, priority=3, connection="high") for _ in range(2)))
    assert drain(queue, rows=1) == [*[("high", 1)] * 8, ("low", 1)] * 2 + [*[("high", 1)] * 4, ("low", 1)]


def test_of_two_priorities_that_were_passed_over_the_more_urgent_is_next() -> None:
    queue = queue_of(
        request(connection="0"), request(connection="1", priority=1), request(9, connection="2", priority=2)
    )
    assert drain(queue, rows=1) == [*[("2", 1)] * 8, ("1", 1), ("0", 1), ("2", 1)]


def test_rows_that_fill_the_batch_of_a_more_urgent_request_count_as_served() -> None:
    queue = queue_of(request(connection="low"), request(20, priority=3, connection="high"))
    for _ in range(9):
        queue.record_batch({3, 0})
    assert queue.peek().connection == "high"
    assert not queue.is_passed_over
    for _ in range(8):
        queue.record_batch({3})
    assert queue.peek().connection == "low"
    assert queue.is_passed_over


def test_a_request_is_removed_once_and_its_rows_with_it() -> None:
    first, second = request(5, connection="a"), request(2, connection="b")
    queue = queue_of(first, second)
    queue.take(first, 3)
    assert (queue.rows, queue.rows_of("a"), queue.rows_of("b")) == (4, 2, 2)
    assert queue.remove(first)
    assert not queue.remove(first)
    assert (queue.rows, queue.rows_of("a"), list(queue)) == (2, 0, [second])
    queue.take(second, 9)
    assert not queue
    assert not queue.remove(second)


def test_rows_ahead_are_those_of_its_own_connection_and_as_many_of_every_other() -> None:
    queue = queue_of(request(100, connection="a"), request(40, connection="b"), request(3, connection="c"))
    scores = request(5, kind=Kind.SCORE, connection="c")
    queue.push(scores)

    def ahead(connection: str, rows: int, priority: int = 0) -> int:
        return sum(queue.rows_ahead(priority, connection, rows=rows, full_rows=8, max_rows=16).values())

    assert ahead("a", 1) == 100 + 48  # both others have fewer rows than it
    assert ahead("new", 2) == pytest.approx(3 * 2, abs=1)  # rounded up for each kind
    assert ahead("c", 2) == pytest.approx(8 + 2 * 10, abs=1)
    assert ahead("new", 1, priority=1) == 0


def test_more_urgent_rows_fill_at_most_eight_batches_for_each_of_a_request() -> None:
    queue = queue_of(*(request(500, priority=3, connection="flood") for _ in range(4)))
    estimate = queue.rows_ahead(0, "robot", rows=9, full_rows=8, max_rows=16)
    assert estimate[Kind.ACT] == 2 * 8 * 16  # its nine rows are in two batches
    assert queue.rows_ahead(3, "robot", rows=9, full_rows=8, max_rows=16)[Kind.ACT] == 9


def test_the_age_for_a_connection_leaves_out_those_with_more_rows() -> None:
    flood = [request(8, connection="flood", queued_s=NOW_S - 3), request(8, connection="flood", queued_s=NOW_S - 2)]
    robot = request(2, connection="robot", queued_s=NOW_S - 1)
    queue = queue_of(*flood, robot)
    assert queue.age_s(NOW_S) == 3.0
    assert queue.age_for_s(NOW_S, "new", 2) == 1.0
    assert queue.age_for_s(NOW_S, "new", 1) == 0.0
    assert queue.age_for_s(NOW_S, "flood", 1) == 3.0
    queue.take(flood[0], 1)
    assert queue.age_for_s(NOW_S, "flood", 1) == 2.0  # rows of the first are being computed
