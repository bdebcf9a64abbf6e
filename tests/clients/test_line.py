"""A line of the stream with a call in gRPC's place that sends when the test says so."""

import queue
import time
from collections.abc import Iterator

import pytest

from kilolayer import DeadlineExceeded, Unavailable
from kilolayer.channel import Endpoint
from kilolayer.line import Line, Slot
from kilolayer.v1.blocks_pb2 import ActRequestBlocks
from kilolayer.v1.policy_pb2 import ActResponse


class Call:
    """Takes requests by `send`, and receives what is put into `replies`, to the end at None."""

    def __init__(self) -> None:
        self.replies: queue.SimpleQueue[ActResponse | None] = queue.SimpleQueue()
        self._requests: Iterator[ActRequestBlocks] = iter(())

    def open(self, requests: Iterator[ActRequestBlocks], *, wait_for_ready: bool) -> "Call":
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
def call() -> Call:
    return Call()


@pytest.fixture
def line(call: Call) -> Iterator[Line]:
    line = Line(call.open, Endpoint("localhost:1", timeout_s=1))
    yield line
    line.close()


def slot(sequence: int, *, limit_s: float = 10) -> Slot:
    return Slot(ActRequestBlocks(sequence=sequence), limit_s=limit_s)


def test_what_was_not_sent_in_time_is_never_sent(line: Line, call: Call) -> None:
    stale, fresh = slot(1, limit_s=0.01), slot(2)
    line.put(stale)
    line.put(fresh)
    time.sleep(0.02)
    assert call.send() == 2
    assert isinstance(stale.error, DeadlineExceeded)
    assert "not sent, the connection took no more" in str(stale.error)
    assert not fresh.settled.is_set()


def test_what_is_never_sent_makes_room(line: Line, call: Call) -> None:
    for sequence in range(64):
        line.put(slot(sequence, limit_s=0.05))
    time.sleep(0.06)
    full = slot(64, limit_s=0.01)
    line.put(full)  # nobody has looked at those before it yet
    assert "64 requests of the stream wait" in str(full.error)
    call.replies.put(ActResponse(sequence=0))  # late, and makes room for one
    fresh = slot(66)
    line.put(fresh)
    assert call.send() == 66
    line.put(slot(67))
    assert call.send() == 67


def test_replies_find_their_requests_in_whatever_order(line: Line, call: Call) -> None:
    first, second = slot(1), slot(2)
    for each in (first, second):
        line.put(each)
        call.send()
    for sequence in (2, 1):
        call.replies.put(ActResponse(sequence=sequence, queue_us=10 * sequence))
    for each in (first, second):
        line.wait(each)
        assert each.error is None
        assert each.reply is not None
        assert each.reply.queue_us == 10 * each.request.sequence


def test_a_late_reply_changes_nothing(line: Line, call: Call) -> None:
    late, next_one = slot(1, limit_s=0.01), slot(2)
    line.put(late)
    assert call.send() == 1
    line.wait(late)
    error = late.error
    assert isinstance(error, DeadlineExceeded)
    line.put(next_one)
    for sequence in (1, 2):
        call.replies.put(ActResponse(sequence=sequence))
    line.wait(next_one)
    assert next_one.reply is not None
    assert late.error is error
    assert late.reply is None


def test_a_line_that_ended_fails_what_is_under_way_and_all_that_follows(line: Line, call: Call) -> None:
    under_way, after = slot(1), slot(2)
    line.put(under_way)
    assert call.send() == 1
    call.replies.put(None)
    line.wait(under_way)
    line.put(after)
    assert line.ended
    for each in (under_way, after):
        assert isinstance(each.error, Unavailable)
        assert "the server ended the stream" in str(each.error)
    assert under_way.error is not after.error  # each caller raises its own
    assert call.send() is None
