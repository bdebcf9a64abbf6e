"""Streams that wait to read: a fake clock, and a limit of 120 bytes."""

import asyncio

import pytest

from serving.api import read_gate
from serving.api.held_bytes import Connection, HeldBytes
from serving.api.read_gate import SLICE_BYTES, ReadGate
from serving.errors import MemoryLimitError
from tests.serving.fakes import turn_loop

SLICE_S = 1000.0


@pytest.fixture(autouse=True)
def long_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timer does not fire during a test."""
    monkeypatch.setattr(read_gate, "SLICE_S", SLICE_S)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def full(held: HeldBytes, peer: str, size: int = 60) -> Connection:
    connection = held.connection(peer)
    connection.hold(size)
    return connection


async def waiting(gate: ReadGate, connection: Connection, count: int) -> list["asyncio.Task[None]"]:
    tasks = [asyncio.create_task(gate.wait(connection)) for _ in range(count)]
    await turn_loop()
    return tasks


def done(tasks: "list[asyncio.Task[None]]") -> list[bool]:
    return [task.done() for task in tasks]


async def cancel(tasks: "list[asyncio.Task[None]]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_connection_with_room_does_not_wait() -> None:
    gate, held = ReadGate(stalled_s=10, clock=Clock()), HeldBytes(120)
    assert gate.is_open(full(held, "one", 40))
    assert not gate.is_open(full(held, "two", 60))


async def test_a_release_that_makes_room_lets_the_first_stream_read_and_later_ones_follow() -> None:
    gate, held = ReadGate(stalled_s=10, clock=Clock()), HeldBytes(120)
    one = full(held, "one")
    tasks = await waiting(gate, one, 3)
    gate.release(one, 10)  # 50 held, 70 free: no room
    await turn_loop()
    assert done(tasks) == [False, False, False]
    gate.release(one, 10)  # 40 held, 80 free
    await turn_loop()
    assert done(tasks) == [True, False, False]
    assert not gate.is_open(one)  # those that wait are first
    one.hold(10)
    gate.release(one, 10)
    await turn_loop()
    assert done(tasks) == [True, True, False]
    await cancel(tasks)


async def test_room_that_another_connection_makes_is_found_by_the_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_gate, "SLICE_S", 0.001)
    gate, held = ReadGate(stalled_s=10, clock=Clock()), HeldBytes(120)
    one, two = full(held, "one", 30), full(held, "two", 50)  # 40 are free
    tasks = await waiting(gate, one, 1)
    gate.release(two, 50)
    await asyncio.wait_for(tasks[0], timeout=60)


async def test_the_streams_of_a_peer_that_reads_nothing_end_and_those_of_a_slow_one_do_not() -> None:
    clock = Clock()
    gate, held = ReadGate(stalled_s=10, clock=clock), HeldBytes(600)
    stalled, slow = full(held, "stalled", 200), full(held, "slow", 200)
    ended, kept = await waiting(gate, stalled, 2), await waiting(gate, slow, 2)
    clock.now_s += 9
    gate.release(slow, 1)
    gate.check()
    clock.now_s += 2
    gate.check()
    await turn_loop()
    assert (done(ended), done(kept)) == ([True, True], [False, False])
    for task in ended:
        with pytest.raises(
            MemoryLimitError, match="completed no requests and read no replies for 10 s while the server"
        ):
            task.result()
    clock.now_s += 9
    gate.check()
    await turn_loop()
    assert done(kept) == [True, True]
    await cancel(kept)


async def test_a_cancelled_stream_does_not_take_the_place_of_another() -> None:
    gate, held = ReadGate(stalled_s=10, clock=Clock()), HeldBytes(120)
    one = full(held, "one")
    tasks = await waiting(gate, one, 2)
    tasks[0].cancel()
    await turn_loop()
    gate.release(one, 20)
    await turn_loop()
    assert tasks[1].done()


async def test_a_connection_that_sends_much_reads_as_fast_as_its_requests_are_processed() -> None:
    clock = Clock()
    gate, held = ReadGate(stalled_s=10, clock=clock), HeldBytes(SLICE_BYTES * 100)
    one = full(held, "one", 1)
    gate.received(one, SLICE_BYTES - 1, read_s=clock.now_s)
    assert gate.is_open(one)
    gate.received(one, 1, read_s=clock.now_s)
    assert not gate.is_open(one)
    assert gate.is_open(full(held, "two", 1))
    tasks = await waiting(gate, one, 12)
    clock.now_s += SLICE_S / 2
    gate.received(one, 1, read_s=clock.now_s)  # fast: another stream may read
    gate.received(one, 1, read_s=clock.now_s - 2 * SLICE_S)  # it was slow: none
    await turn_loop()
    assert done(tasks) == [True] + [False] * 11
    gate.check()  # as the timer does: one more
    await turn_loop()
    assert done(tasks) == [True] * 2 + [False] * 10
    await cancel(tasks)


async def test_a_connection_that_has_sent_much_may_read_again_when_its_slice_is_over() -> None:
    clock = Clock()
    gate, held = ReadGate(stalled_s=10, clock=clock), HeldBytes(SLICE_BYTES * 100)
    one = full(held, "one", 1)
    gate.received(one, SLICE_BYTES, read_s=clock.now_s)
    clock.now_s += SLICE_S / 2
    assert not gate.is_open(one)
    clock.now_s += SLICE_S
    assert gate.is_open(one)
