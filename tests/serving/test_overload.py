"""When calls are checked before they are read, and what an unread call counts as. Times worked out by hand."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from serving.batching.overload import Overload
from serving.batching.scheduler import Arrival, BatchingPolicy, Rejection
from serving.engine.engine import Kind
from serving.errors import OverloadedError, Reason
from serving.policies.registry import PolicyRegistry, ServedPolicy
from serving.policies.seen_range import SeenRange
from tests.serving.batcher_bench import Bench, MakeEngine, WaitUntil, busy
from tests.serving.fakes import BUNDLE

NOW_S = 100.0
FULL = Rejection(Reason.QUEUE_FULL, "full")


def overload(read_every: int = 1000) -> Overload:
    """Rejections are remembered for 1 s and priorities for 60 s."""
    return Overload(BatchingPolicy(max_queue_rows=1, max_queue_age_s=1.0, max_batch_delay_s=0.0, read_every=read_every))


def test_it_is_present_for_a_second_after_a_rejection() -> None:
    remembered = overload()
    assert not remembered.is_present(NOW_S)
    remembered.record_rejection(NOW_S)
    assert remembered.is_present(NOW_S + 0.99)
    assert not remembered.is_present(NOW_S + 1.0)


def test_an_unread_call_counts_as_one_row_with_the_highest_priority_of_the_last_minute() -> None:
    remembered = overload()
    assert remembered.least_arrival(NOW_S, 107.0) == Arrival(NOW_S, 107.0, rows=1, kind=Kind.ACT, priority=0)
    remembered.record_priority(3, NOW_S)
    remembered.record_priority(1, NOW_S + 30)
    found = [remembered.least_arrival(NOW_S + after_s, 200.0) for after_s in (59.9, 60.0, 89.9, 90.0)]
    assert [arriving and arriving.priority for arriving in found] == [3, 1, 1, 0]


def test_one_call_in_four_is_read_in_any_case() -> None:
    remembered = overload(read_every=4)
    is_read = [remembered.least_arrival(NOW_S, 101.0) is None for _ in range(8)]
    assert is_read == [False, False, False, True] * 2


async def test_the_batcher_rejects_unread_calls_while_its_queue_is_full(
    make_engine: MakeEngine, wait_until: WaitUntil
) -> None:
    bench = Bench(make_engine(max_rows=8), max_queue_rows=2)
    batcher = bench.batcher
    first = await busy(bench, wait_until)
    queued = bench.submit(1, 2)
    await wait_until(lambda: batcher.queue_rows == 2)
    assert not batcher.is_overloaded
    with pytest.raises(OverloadedError):
        await bench.submit(3)
    assert batcher.is_overloaded
    rejection = batcher.reject_unread(float("inf"))
    assert rejection == (Reason.QUEUE_FULL, "the queue is full: 2 of 2 rows wait")
    assert bench.metric("rejected_total", reason="queue_full") == 1  # only the call that was read
    bench.engine.release()
    await first
    await queued
    assert batcher.reject_unread(float("inf")) is None
    assert await batcher.drain(grace_s=60)
    bench.engine.hold()
    assert batcher.reject_unread(float("inf")) is None


async def test_an_unread_call_of_a_connection_with_few_rows_is_read_although_another_fills_the_queue(
    make_engine: MakeEngine, wait_until: WaitUntil
) -> None:
    bench = Bench(make_engine(max_rows=8), max_queue_rows=16)
    await busy(bench, wait_until)
    bench.submit(*range(16), connection="flood")
    await wait_until(lambda: bench.batcher.queue_rows == 16)
    rejection = bench.batcher.reject_unread(float("inf"), connection="flood")
    assert rejection == (Reason.QUEUE_FULL, "the queue is full: 16 of 16 rows wait")
    assert bench.batcher.reject_unread(float("inf"), connection="robot") is None
    bench.engine.release()
    assert await bench.batcher.drain(grace_s=60)


async def test_a_call_with_too_little_time_is_rejected_unread_unless_it_may_be_urgent(
    make_engine: MakeEngine, wait_until: WaitUntil
) -> None:
    engine = make_engine(max_rows=4)
    engine.row_s = 1.0  # a full batch takes 4 s
    bench = Bench(engine)
    await busy(bench, wait_until)
    bench.submit(1, 2, 3, 4)
    await wait_until(lambda: bench.batcher.queue_rows == 4)
    # 1 s for the row in flight, 4 s for the full batch, 1 s for its own row, and a quarter more: 7.5 s.
    assert bench.batcher.reject_unread(engine.now_s + 7.5) is None
    rejection = bench.batcher.reject_unread(engine.now_s + 7.4)
    assert rejection
    assert rejection.reason is Reason.DEADLINE_TOO_SHORT
    bench.submit(5, priority=1)
    await wait_until(lambda: bench.batcher.queue_rows == 5)
    assert bench.batcher.reject_unread(engine.now_s + 7.4) is None  # with priority 1, only two rows are ahead of it
    engine.release()
    assert await bench.batcher.drain(grace_s=60)


def registry(*rejections: Rejection | None) -> PolicyRegistry:
    """Policies whose batchers are overloaded and reject unread calls so."""

    def batcher(rejection: Rejection | None) -> Any:
        def reject_unread(_deadline_s: float, *, connection: str) -> Rejection | None:
            return rejection

        return SimpleNamespace(is_overloaded=rejection is not None, reject_unread=reject_unread)

    names = [f"p{number}" for number in range(len(rejections))]
    policies = PolicyRegistry(frozenset(names), default=names[0] if names else "p")
    served = zip(names, rejections, strict=True)
    for name, rejection in served:
        bundle = dataclasses.replace(BUNDLE, spec=dataclasses.replace(BUNDLE.spec, name=name))
        policies.open([ServedPolicy(bundle, batcher(rejection), SeenRange(BUNDLE.spec))])
    return policies


def test_a_call_is_read_if_any_policy_may_admit_it() -> None:
    assert registry(FULL, FULL).reject_unread(0.0) == FULL
    assert registry(FULL, FULL).is_overloaded()
    assert registry(FULL, None).reject_unread(0.0) is None
    assert not registry(FULL, None).is_overloaded()
    assert registry().reject_unread(0.0) is None  # the policies are still compiled
    assert not registry().is_overloaded()
