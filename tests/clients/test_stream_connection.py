"""One connection of a stream, with a fake call that sends when the test says so, and a clock that the test sets."""

from __future__ import annotations  # for Python 3.9

import queue
from collections.abc import Iterator

import pytest

from kilolayer import BadReply, DeadlineExceeded, Unavailable
from kilolayer._channel import Endpoint
from kilolayer._internal.blocks_pb2 import ActRequestBlocks
from kilolayer._stream_connection import PendingRequest, StreamConnection
from kilolayer.v1.policy_pb2 import ActResponse


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Call:
    """Takes requests by `send`, and receives what is put into `replies`, until None."""

    def __init__(self) -> None:
        self.replies: queue.SimpleQueue[ActResponse | None] = queue.SimpleQueue()
        self._requests: Iterator[ActRequestBlocks] = iter(())

    def open(self, requests: Iterator[ActRequestBlocks], *, wait_for_ready: bool) -> Call:
        assert not wait_for_ready
        self._requests = requests
        return self

    def send(self) -> int | None:
        request = next(self._requests, None)
        return None if request is None else request.sequence

    def cancel(self) -> None:
        self.replies.put(None)

    def __iter__(self) -> Iterator[ActResponse]:
        return iter(self.replies.get, None)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def call() -> Call:
    return Call()


@pytest.fixture
def connection(call: Call) -> Iterator[StreamConnection]:
    connection = StreamConnection(call.open, Endpoint("localhost:1", timeout_s=1))
    yield connection
    connection.close()


def pending(sequence: int, clock: Clock, *, timeout_s: float = 10) -> PendingRequest:
    return PendingRequest(ActRequestBlocks(sequence=sequence), timeout_s=timeout_s, clock=clock)


def test_a_request_that_was_not_sent_in_time_is_never_sent(
    connection: StreamConnection, call: Call, clock: Clock
) -> None:
    stale, fresh = pending(1, clock, timeout_s=1), pending(2, clock)
    connection.send(stale)
    connection.send(fresh)
    clock.now_s += 1.5
    assert call.send() == 2
    assert isinstance(stale.error, DeadlineExceeded)
    assert "not sent, the connection did not accept it in time" in str(stale.error)
    assert not fresh.completed.is_set()


def test_a_request_that_is_never_sent_makes_room(connection: StreamConnection, call: Call, clock: Clock) -> None:
    for sequence in range(64):
        connection.send(pending(sequence, clock, timeout_s=1))
    full = pending(64, clock, timeout_s=0)
    connection.send(full)
    assert "not sent, 64 requests of the stream wait for replies" in str(full.error)
    clock.now_s += 1.5
    fresh = pending(66, clock)
    call.replies.put(ActResponse(sequence=0))  # late; it makes room for the next
    connection.send(fresh)
    assert call.send() == 66  # all those before it were dropped
    next_one = pending(67, clock)
    connection.send(next_one)
    assert call.send() == 67


def test_replies_find_their_requests_in_any_order(connection: StreamConnection, call: Call, clock: Clock) -> None:
    first, second = pending(1, clock), pending(2, clock)
    for each in (first, second):
        connection.send(each)
        call.send()
    for sequence in (2, 1):
        call.replies.put(ActResponse(sequence=sequence, queue_us=10 * sequence))
    for each in (first, second):
        connection.wait(each)
        assert each.error is None
        assert each.reply is not None
        assert each.reply.queue_us == 10 * each.message.sequence
        assert each.arrived_s - each.sent_s == 0


def test_a_request_whose_wait_timed_out_ignores_its_reply(
    connection: StreamConnection, call: Call, clock: Clock
) -> None:
    late, next_one = pending(1, clock, timeout_s=1), pending(2, clock)
    connection.send(late)
    assert call.send() == 1
    clock.now_s += 1.5
    connection.wait(late)
    error = late.error
    assert isinstance(error, DeadlineExceeded)
    assert "no reply in time" in str(error)
    connection.send(next_one)
    for sequence in (1, 2):
        call.replies.put(ActResponse(sequence=sequence))
    connection.wait(next_one)
    assert next_one.reply is not None
    assert late.error is error
    assert late.reply is None


def test_a_reply_after_the_deadline_is_too_late_even_if_nobody_waited(
    connection: StreamConnection, call: Call, clock: Clock
) -> None:
    late, next_one = pending(1, clock, timeout_s=1), pending(2, clock)
    for each in (late, next_one):
        connection.send(each)
        call.send()
    clock.now_s += 1.5
    for sequence in (1, 2):
        call.replies.put(ActResponse(sequence=sequence))
    connection.wait(next_one)
    assert isinstance(late.error, DeadlineExceeded)
    assert "the reply came too late" in str(late.error)
    assert late.reply is None


def test_a_reply_in_time_is_kept_after_the_deadline(connection: StreamConnection, call: Call, clock: Clock) -> None:
    early = pending(1, clock, timeout_s=1)
    connection.send(early)
    call.send()
    clock.now_s += 0.25
    call.replies.put(ActResponse(sequence=1))
    assert early.completed.wait(10)
    clock.now_s += 5
    connection.wait(early)
    assert early.error is None
    assert early.reply is not None
    assert early.arrived_s - early.sent_s == 0.25


@pytest.mark.parametrize("sequence", [1, 3])  # answered already; never sent
def test_a_reply_that_answers_no_request_ends_the_stream_and_is_nobodys_action(
    connection: StreamConnection, call: Call, clock: Clock, sequence: int
) -> None:
    first, second = pending(1, clock), pending(2, clock)
    for each in (first, second):
        connection.send(each)
        call.send()
    call.replies.put(ActResponse(sequence=1, queue_us=10))
    connection.wait(first)
    call.replies.put(ActResponse(sequence=sequence, queue_us=99))
    connection.wait(second)
    assert first.reply is not None
    assert first.reply.queue_us == 10
    assert second.reply is None
    assert isinstance(second.error, BadReply)
    assert f"it answers request {sequence}, which is not pending" in str(second.error)
    assert connection.ended


def test_late_replies_out_of_order_leave_the_request_after_them_alone(
    connection: StreamConnection, call: Call, clock: Clock
) -> None:
    late = [pending(sequence, clock, timeout_s=1) for sequence in (1, 2)]
    for each in late:
        connection.send(each)
        call.send()
    clock.now_s += 1.5
    fresh = pending(3, clock, timeout_s=1)
    connection.send(fresh)
    call.send()
    for sequence in (2, 3, 1):
        call.replies.put(ActResponse(sequence=sequence, queue_us=10 * sequence))
    connection.wait(fresh)
    call.replies.put(None)
    for each in late:
        connection.wait(each)
        assert each.reply is None
        assert isinstance(each.error, DeadlineExceeded)
    assert fresh.reply is not None
    assert fresh.reply.queue_us == 30


def test_when_the_stream_ends_pending_and_later_requests_fail(
    connection: StreamConnection, call: Call, clock: Clock
) -> None:
    before, after = pending(1, clock), pending(2, clock)
    connection.send(before)
    assert call.send() == 1
    call.replies.put(None)
    connection.wait(before)
    connection.send(after)
    assert connection.ended
    for each in (before, after):
        assert isinstance(each.error, Unavailable)
        assert "the server ended the stream" in str(each.error)
    assert before.error is not after.error  # each caller raises its own
    assert call.send() is None


def test_a_request_completes_once(clock: Clock) -> None:
    first, second = DeadlineExceeded("a", status=""), DeadlineExceeded("b", status="")
    request = pending(1, clock)
    request.fail(first)
    request.fail(second)
    assert request.complete(ActResponse(sequence=1))
    assert request.error is first
    assert request.reply is None
    assert request.arrived_s == 0
