"""The batcher with an engine that computes several batches at once."""

import asyncio
import threading

import numpy as np
import pytest

from serving.batching.queue import InferenceResult
from serving.engine.engine import Kind
from serving.errors import ComputationError, UnavailableError
from tests.serving.batcher_bench import Bench, MakeEngine, WaitUntil, a_while, busy, run


async def both_lanes_busy(bench: Bench, wait_until: WaitUntil) -> list[asyncio.Task[InferenceResult]]:
    """Have both max_concurrency stuck, each in a batch of its own."""
    bench.engine.hold()
    calls = [bench.submit(-1, -1)]
    await wait_until(lambda: len(bench.engine.batches) == 1)
    calls.append(bench.submit(-2, -2))
    await wait_until(lambda: len(bench.engine.batches) == 2)
    return calls


def test_a_free_lane_computes_beside_a_batch_once_enough_rows_wait(
    make_engine: MakeEngine, wait_until: WaitUntil
) -> None:
    async def test() -> None:
        bench = Bench(make_engine(max_rows=4, full_rows=2, max_concurrency=2))
        first = await busy(bench, wait_until)
        lone = bench.submit(1)
        await a_while()
        assert bench.engine.batches == [[[-1]]]  # one row is not worth a lane
        company = bench.submit(2)
        await wait_until(lambda: len(bench.engine.batches) == 2)
        assert bench.engine.batches[1] == [[1], [2]]
        waiting = bench.submit(3, 4, 5, 6)  # no lane is free
        await a_while()
        assert bench.batcher.queue_rows == 4
        bench.engine.let_go()
        await asyncio.gather(first, lone, company, waiting)
        assert sum(len(batch) for batch in bench.engine.batches) == 7
        assert await bench.batcher.drain(grace_s=5)

    run(test())


def test_a_lone_row_does_not_wait_for_a_long_batch_while_a_lane_is_free(
    make_engine: MakeEngine, wait_until: WaitUntil
) -> None:
    async def test() -> None:
        engine = make_engine(max_rows=32, full_rows=16, max_concurrency=2)
        engine.row_s = 1.0
        bench = Bench(engine)
        engine.hold()
        first = bench.submit(*range(9))  # longer than eight times what the row takes
        await wait_until(lambda: len(engine.batches) == 1)
        lone = bench.submit(-1)
        await wait_until(lambda: engine.batches[1:] == [[[-1]]])
        engine.let_go()
        await asyncio.gather(first, lone)
        assert await bench.batcher.drain(grace_s=5)

    run(test())


def test_a_row_that_would_be_late_behind_a_batch_begins_on_the_free_lane(
    make_engine: MakeEngine, wait_until: WaitUntil
) -> None:
    async def test() -> None:
        engine = make_engine(max_rows=32, full_rows=16, max_concurrency=2)
        engine.row_s = 1.0
        bench = Bench(engine)
        engine.hold()
        calls = [bench.submit(*range(8))]
        await wait_until(lambda: len(engine.batches) == 1)
        calls.append(bench.submit(-1, timeout_s=10))  # 8 s for the first batch and 1 s for its own: it can wait
        await a_while()
        assert bench.batcher.queue_rows == 1
        calls.append(bench.submit(-2, timeout_s=8.5))
        await wait_until(lambda: engine.batches[1:] == [[[-1], [-2]]])
        engine.let_go()
        await asyncio.gather(*calls)
        assert await bench.batcher.drain(grace_s=5)

    run(test())


def test_what_is_left_of_a_split_call_begins_at_once_if_a_lane_is_free(
    make_engine: MakeEngine, wait_until: WaitUntil
) -> None:
    async def test() -> None:
        bench = Bench(make_engine(max_rows=8, full_rows=4, max_concurrency=2))
        bench.engine.hold()
        call = bench.submit(1, 2, 3, 4, 5)
        await wait_until(lambda: len(bench.engine.batches) == 2)
        assert bench.engine.batches == [[[1], [2], [3], [4]], [[5]]]
        bench.engine.let_go()
        assert (await call).results[:, 0].tolist() == [1, 2, 3, 4, 5]
        assert await bench.batcher.drain(grace_s=5)

    run(test())


def test_few_rows_wait_for_an_overdue_batch_no_longer_than_they_must(
    make_engine: MakeEngine, wait_until: WaitUntil
) -> None:
    async def test() -> None:
        engine = make_engine(max_rows=4, full_rows=4, max_concurrency=2)
        engine.row_s = 0.001
        bench = Bench(engine)
        first = await busy(bench, wait_until)
        lone = bench.submit(1)
        await a_while()
        assert len(engine.batches) == 1
        engine.now_s += 1.0  # by its clock the batch should have ended long ago; nothing else happens
        await wait_until(lambda: engine.batches[1:] == [[[1]]])
        engine.let_go()
        await asyncio.gather(first, lone)
        assert await bench.batcher.drain(grace_s=5)

    run(test())


def test_a_full_batch_waits_while_the_event_loop_needs_the_core_and_no_longer(
    make_engine: MakeEngine, wait_until: WaitUntil, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = 0.9
    monkeypatch.setattr("serving.batching.batch_delay.Pace.loop_share", lambda _self, _now_s: share)

    async def test() -> None:
        nonlocal share
        bench = Bench(make_engine(max_rows=4, full_rows=2, max_concurrency=2))
        first = await busy(bench, wait_until)
        waiting = bench.submit(1, 2)
        await a_while()
        assert bench.engine.batches == [[[-1]]]
        share = 0.1  # of which nobody tells the batcher
        await wait_until(lambda: bench.engine.batches[1:] == [[[1], [2]]])
        bench.engine.let_go()
        await asyncio.gather(first, waiting)
        assert await bench.batcher.drain(grace_s=5)

    run(test())


def test_a_batch_under_way_makes_the_computation_busy_before_it_has_ended(
    make_engine: MakeEngine, wait_until: WaitUntil
) -> None:
    async def test() -> None:
        engine = make_engine(max_rows=4, full_rows=4, max_concurrency=2)
        bench = Bench(engine, wait_s=1000.0)
        calls = [await busy(bench, wait_until)]
        engine.now_s += 10.0  # overdue, so that one row may begin; but it is worth a wait for company
        calls.append(bench.submit(1))
        await a_while()
        assert engine.batches == [[[-1]]]
        calls.append(bench.submit(2, 3, 4))
        await wait_until(lambda: engine.batches[1:] == [[[1], [2], [3], [4]]])
        engine.let_go()
        await asyncio.gather(*calls)
        assert await bench.batcher.drain(grace_s=5)

    run(test())


def test_a_drain_does_not_wait_for_company_or_for_a_batch_that_is_stuck(
    make_engine: MakeEngine, wait_until: WaitUntil
) -> None:
    async def test() -> None:
        engine = make_engine(max_rows=4, full_rows=4, max_concurrency=2)
        engine.compute_s = 10.0  # by its clock: busy from now on
        bench = Bench(engine, wait_s=1000.0)
        await bench.submit(1)
        engine.hold()
        stuck = asyncio.create_task(bench.batcher.submit(np.array([[2], [3], [4], [5]], np.float32)))
        await wait_until(lambda: len(engine.batches) == 2)
        waiting = bench.submit(6)
        await wait_until(lambda: bench.batcher.queue_rows == 1)
        draining = asyncio.create_task(bench.batcher.drain(grace_s=20))
        await wait_until(lambda: engine.batches[2:] == [[[6]]])
        engine.let_go()
        assert await draining is True
        await asyncio.gather(stuck, waiting)

    run(test())


def test_lanes_share_a_large_call_which_is_answered_when_the_slowest_has_its_part(
    make_engine: MakeEngine, wait_until: WaitUntil
) -> None:
    async def test() -> None:
        engine = make_engine(max_rows=4, full_rows=2, max_concurrency=2)
        at_once, of_one, whole = threading.Barrier(2), threading.Event(), engine.compute

        def compute(kind: Kind, rows: np.ndarray) -> np.ndarray:
            at_once.wait(timeout=30)  # so that neither computes before both have begun
            if rows[0, 0] == 1:
                of_one.wait(timeout=30)
            return whole(kind, rows)

        engine.compute = compute
        bench = Bench(engine)
        call = bench.submit(1, 2, 3, 4, 5, 6, 7, 8)
        await wait_until(lambda: bench.metric("rows_total") == 4)
        assert not call.done()
        of_one.set()
        answer = await call
        assert answer.results.tolist() == [[value, 10 * value] for value in range(1, 9)]
        assert answer.batch_rows == 4
        assert bench.metric("queue_seconds_count") == 1
        assert bench.metric("queue_seconds_sum") == answer.queue_s
        assert engine.batches == [[[5], [6], [7], [8]], [[1], [2], [3], [4]]]
        assert await bench.batcher.drain(grace_s=5)

    run(test())


def test_a_call_of_which_one_part_fails_is_answered_once_and_the_other_part_harms_nobody(
    make_engine: MakeEngine,
) -> None:
    async def test() -> None:
        bench = Bench(make_engine(max_rows=4, full_rows=2, max_concurrency=2))
        with pytest.raises(ComputationError, match="NaN or infinity"):
            await bench.submit(1, 2, 3, 4, 5, 6, 7, np.inf)
        assert (await bench.submit(2)).results.tolist() == [[2, 20]]
        assert await bench.batcher.drain(grace_s=5)
        assert bench.metric("non_finite_total") == 1

    run(test())


def test_drain_waits_for_every_lane(make_engine: MakeEngine, wait_until: WaitUntil) -> None:
    async def test() -> None:
        bench = Bench(make_engine(max_rows=2, max_concurrency=2))
        calls = await both_lanes_busy(bench, wait_until)
        calls.append(bench.submit(1))
        await wait_until(lambda: bench.batcher.queue_rows == 1)
        draining = asyncio.create_task(bench.batcher.drain(grace_s=20))
        await asyncio.sleep(0.01)
        assert not draining.done()
        bench.engine.let_go()
        assert await draining is True
        assert [call.result().results[0, 0] for call in calls] == [-1, -2, 1]

    run(test())


def test_when_the_grace_is_over_what_is_on_every_lane_fails(make_engine: MakeEngine, wait_until: WaitUntil) -> None:
    async def test() -> None:
        bench = Bench(make_engine(max_rows=2, max_concurrency=2))
        calls = await both_lanes_busy(bench, wait_until)
        assert await bench.batcher.drain(grace_s=0.05) is False
        for call in calls:
            with pytest.raises(UnavailableError):
                await call
        bench.engine.let_go()
        await wait_until(lambda: bench.metric("batches_total") == 2)  # finished, and thrown away

    run(test())
