"""The batcher with a fake engine, which gives a row the result [sum, 10 * sum]. The scheduler has tests of its own."""

import asyncio
import threading

import numpy as np
import pytest

from serving.batching.queue import InferenceResult
from serving.engine.engine import Kind
from serving.errors import (
    ComputationError,
    DeadlinePassedError,
    DrainingError,
    NonFiniteActionError,
    OverloadedError,
    Reason,
    Status,
    UnexpectedError,
)
from tests.serving.batcher_bench import Bench, MakeEngine, WaitUntil, busy


async def test_a_lone_request_is_computed_alone(make_engine: MakeEngine) -> None:
    engine = make_engine(max_rows=8)
    engine.compute_s = 0.25
    bench = Bench(engine)
    result = await bench.submit(1, 2, 3)
    np.testing.assert_array_equal(result.results, [[1, 10], [2, 20], [3, 30]])
    assert (result.queue_s, result.compute_s, result.batch_rows) == (0.0, 0.25, 3)
    assert bench.metric("rows_total") == 3
    assert bench.metric("batches_total") == 1
    assert bench.metric("padding_rows_total") == 5
    assert bench.metric("compute_seconds_sum") == 0.25
    assert bench.metric("queue_seconds_count") == 1
    assert await bench.batcher.drain(grace_s=5)


async def test_requests_that_arrive_during_a_batch_form_the_next_one(
    make_engine: MakeEngine, wait_until: WaitUntil
) -> None:
    bench = Bench(make_engine(max_rows=8))
    first = await busy(bench, wait_until)
    requests = [bench.submit(1), bench.submit(2, 3), bench.submit(4, 5, 6)]
    await wait_until(lambda: bench.batcher.queue_rows == 6)
    assert bench.metric("queue_rows") == 6
    bench.engine.now_s += 2.0
    bench.engine.release()
    results = await asyncio.gather(first, *requests)
    assert bench.engine.batches == [[[-1]], [[1], [2], [3], [4], [5], [6]]]
    assert [result.results[:, 0].tolist() for result in results] == [[-1], [1], [2, 3], [4, 5, 6]]
    assert [result.batch_rows for result in results] == [1, 6, 6, 6]
    assert [result.queue_s for result in results] == [0, 2, 2, 2]
    assert bench.metric("queue_rows") == 0
    assert bench.metric("batches_total") == 2
    assert bench.metric("queue_seconds_sum") == 6
    assert await bench.batcher.drain(grace_s=5)


async def test_a_request_larger_than_a_batch_gets_all_its_results_in_order(
    make_engine: MakeEngine, wait_until: WaitUntil
) -> None:
    bench = Bench(make_engine(max_rows=4))
    first = await busy(bench, wait_until)
    requests = [bench.submit(1, 2, 3), bench.submit(4, 5), bench.submit(6), bench.submit(7, 8, 9, 10)]
    await wait_until(lambda: bench.batcher.queue_rows == 10)
    bench.engine.release()
    _, *results = await asyncio.gather(first, *requests)
    tens = [result.results[:, 1].tolist() for result in results]
    assert tens == [[10, 20, 30], [40, 50], [60], [70, 80, 90, 100]]
    assert bench.engine.batches[1:] == [[[1], [2], [3], [4]], [[5], [6], [7], [8]], [[9], [10]]]
    assert await bench.batcher.drain(grace_s=5)


async def test_priorities_and_kinds_reach_the_scheduler(make_engine: MakeEngine, wait_until: WaitUntil) -> None:
    bench = Bench(make_engine(max_rows=2))
    first = await busy(bench, wait_until)
    requests = [bench.submit(1), bench.submit(2, kind=Kind.SCORE), bench.submit(3, priority=3)]
    await wait_until(lambda: bench.batcher.queue_rows == 3)
    bench.engine.release()
    await asyncio.gather(first, *requests)
    assert bench.engine.batches[1:] == [[[3], [1]], [[2]]]
    assert bench.engine.kinds[1:] == [Kind.ACT, Kind.SCORE]
    assert await bench.batcher.drain(grace_s=5)


async def test_a_rejected_request_is_counted_and_leaves_nothing_behind(
    make_engine: MakeEngine, wait_until: WaitUntil
) -> None:
    engine = make_engine(max_rows=2)
    engine.compute_s = 1.0  # for any batch
    bench = Bench(engine, max_queue_rows=4, max_queue_age_s=2.0)
    first = await busy(bench, wait_until)
    waiting = bench.submit(1, 2, 3)
    await wait_until(lambda: bench.batcher.queue_rows == 3)
    with pytest.raises(OverloadedError, match="3 of 4 rows wait") as rejected:
        await bench.submit(4, 5)
    assert rejected.value.reason is Reason.QUEUE_FULL
    assert rejected.value.status is Status.RESOURCE_EXHAUSTED
    assert ("grpc-retry-pushback-ms", "-1") in rejected.value.trailers
    # 1 s for the batch in flight, and two batches for the four rows; and a quarter more.
    with pytest.raises(OverloadedError, match=r"the answer would take up to 3\.7500 s"):
        await bench.submit(4, timeout_s=3.7)
    engine.now_s += 2.5
    with pytest.raises(OverloadedError, match=r"a request has waited for 2\.500 s$"):
        await bench.submit(4)
    for reason in ("queue_full", "deadline_too_short", "queue_age"):
        assert bench.metric("rejected_total", reason=reason) == 1
    assert bench.batcher.queue_rows == 3
    engine.release()
    await asyncio.gather(first, waiting)
    assert (await bench.submit(6)).results.tolist() == [[6, 60]]
    assert engine.batches[1:] == [[[1], [2]], [[3]], [[6]]]
    assert await bench.batcher.drain(grace_s=5)


async def test_a_deadline_that_passes_in_the_queue_costs_no_computation(
    make_engine: MakeEngine, wait_until: WaitUntil
) -> None:
    bench = Bench(make_engine())
    first = await busy(bench, wait_until)
    with pytest.raises(DeadlinePassedError, match="before the request arrived"):
        await bench.submit(1, timeout_s=0)
    late, in_time = bench.submit(2, 3, timeout_s=5), bench.submit(4, timeout_s=7)
    await wait_until(lambda: bench.batcher.queue_rows == 3)
    bench.engine.now_s += 6
    bench.engine.release()
    with pytest.raises(DeadlinePassedError, match="waited until its deadline could not be met"):
        await late
    assert (await in_time).results.tolist() == [[4, 40]]
    await first
    assert bench.engine.batches == [[[-1]], [[4]]]
    assert bench.batcher.queue_rows == 0
    assert await bench.batcher.drain(grace_s=5)


async def test_a_delayed_batch_is_dispatched_when_it_is_full(make_engine: MakeEngine) -> None:
    engine = make_engine(max_rows=4)
    bench = Bench(engine, max_batch_delay_s=1000.0)
    engine.compute_s = 10.0  # by its clock: full load from now on
    await bench.submit(1)
    engine.compute_s = 0.0
    await asyncio.gather(bench.submit(2), bench.submit(3, 4), bench.submit(5))
    assert engine.batches[1:] == [[[2.0], [3.0], [4.0], [5.0]]]
    assert await bench.batcher.drain(grace_s=5)


async def test_a_delayed_batch_is_dispatched_when_its_delay_ends(
    make_engine: MakeEngine, wait_until: WaitUntil
) -> None:
    engine = make_engine(max_rows=4)
    bench = Bench(engine, max_batch_delay_s=0.001)
    engine.compute_s = 10.0
    await bench.submit(1)
    engine.compute_s = 0.0
    delayed = bench.submit(2)
    await wait_until(lambda: bench.batcher.queue_rows == 1)
    assert len(engine.batches) == 1
    engine.now_s += 0.001
    assert (await delayed).queue_s == pytest.approx(0.001)
    assert await bench.batcher.drain(grace_s=5)


async def test_a_request_that_cannot_wait_ends_the_delay(make_engine: MakeEngine, wait_until: WaitUntil) -> None:
    engine = make_engine(max_rows=4)
    bench = Bench(engine, max_batch_delay_s=1000.0)
    engine.compute_s = 10.0
    await bench.submit(1)
    delayed = bench.submit(2)
    await wait_until(lambda: bench.batcher.queue_rows == 1)
    hurried = bench.submit(3, timeout_s=12.501)  # a full batch takes 10 s, 12.5 s with the margin
    await wait_until(lambda: bench.batcher.queue_rows == 2)
    engine.now_s += 0.001
    await asyncio.gather(delayed, hurried)
    assert engine.batches[1:] == [[[2], [3]]]
    assert await bench.batcher.drain(grace_s=5)


async def test_two_batches_are_computed_at_the_same_time(make_engine: MakeEngine, wait_until: WaitUntil) -> None:
    engine = make_engine(max_rows=4, full_rows=2, max_concurrency=2)
    both, of_one, compute = threading.Barrier(2), threading.Event(), engine.compute

    def held(kind: Kind, rows: np.ndarray) -> np.ndarray:
        both.wait(timeout=30)  # neither computes before both have started
        if rows[0, 0] == 1:
            of_one.wait(timeout=30)
        return compute(kind, rows)

    engine.compute = held
    bench = Bench(engine)
    request = bench.submit(1, 2, 3, 4, 5, 6, 7, 8)
    await wait_until(lambda: bench.metric("rows_total") == 4)
    assert not request.done()  # the slower half is missing
    of_one.set()
    result = await request
    assert result.results.tolist() == [[value, 10 * value] for value in range(1, 9)]
    assert result.batch_rows == 4
    assert bench.metric("queue_seconds_count") == 1
    assert engine.batches == [[[5], [6], [7], [8]], [[1], [2], [3], [4]]]
    assert await bench.batcher.drain(grace_s=5)


async def test_few_rows_start_beside_a_batch_that_is_overdue(make_engine: MakeEngine, wait_until: WaitUntil) -> None:
    engine = make_engine(max_rows=4, full_rows=4, max_concurrency=2)
    engine.row_s = 0.0001
    bench = Bench(engine)
    first = await busy(bench, wait_until)
    lone = bench.submit(1)
    await wait_until(lambda: bench.batcher.queue_rows == 1)
    assert engine.batches == [[[-1]]]
    engine.now_s += 1.0  # the batch should have ended; no event tells the batcher
    await wait_until(lambda: engine.batches[1:] == [[[1]]])
    engine.release()
    await asyncio.gather(first, lone)
    assert await bench.batcher.drain(grace_s=5)


async def test_a_batch_waits_while_the_event_loop_needs_the_core_and_no_longer(
    make_engine: MakeEngine, wait_until: WaitUntil, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = 0.9
    monkeypatch.setattr("serving.batching.load.LoadMeter.event_loop", lambda _self, _now_s: share)
    bench = Bench(make_engine(max_rows=4, full_rows=2, max_concurrency=2))
    first = await busy(bench, wait_until)
    waiting = bench.submit(1, 2)
    await wait_until(lambda: bench.batcher.queue_rows == 2)
    assert bench.engine.batches == [[[-1]]]
    share = 0.1  # no event tells the batcher
    await wait_until(lambda: bench.engine.batches[1:] == [[[1], [2]]])
    bench.engine.release()
    await asyncio.gather(first, waiting)
    assert await bench.batcher.drain(grace_s=5)


async def test_a_caller_that_gives_up_leaves_the_queue_immediately(
    make_engine: MakeEngine, wait_until: WaitUntil
) -> None:
    bench = Bench(make_engine(max_rows=2), max_queue_rows=4)
    first = await busy(bench, wait_until)
    given_up, kept = bench.submit(1, 2), bench.submit(3, 4)
    await wait_until(lambda: bench.batcher.queue_rows == 4)
    given_up.cancel()
    await asyncio.wait({given_up})
    assert bench.batcher.queue_rows == 2  # while the engine is still busy
    assert bench.metric("queue_rows") == 2
    successor = bench.submit(5)
    bench.engine.release()
    await asyncio.gather(first, kept, successor)
    assert bench.engine.batches == [[[-1]], [[3], [4]], [[5]]]
    assert await bench.batcher.drain(grace_s=5)


async def test_results_of_a_caller_that_gave_up_are_dropped(make_engine: MakeEngine, wait_until: WaitUntil) -> None:
    bench = Bench(make_engine())
    first = await busy(bench, wait_until)
    first.cancel()
    bench.engine.release()
    assert (await bench.submit(2)).results.tolist() == [[2, 20]]
    assert bench.batcher.queue_rows == 0
    assert await bench.batcher.drain(grace_s=5)


@pytest.mark.parametrize("failure", [RuntimeError("a secret"), asyncio.CancelledError("a secret")])
async def test_an_engine_that_raises_fails_its_batch_only(make_engine: MakeEngine, failure: BaseException) -> None:
    bench = Bench(make_engine())
    bench.engine.failure = failure
    with pytest.raises(ComputationError) as failed:
        await bench.submit(1)
    assert failed.value.status is Status.INTERNAL
    assert "secret" not in str(failed.value)
    bench.engine.failure = None
    assert (await bench.submit(2)).results.tolist() == [[2, 20]]
    assert bench.metric("failed_batches_total") == 1
    assert bench.metric("batches_total") == 1
    assert await bench.batcher.drain(grace_s=5)


async def test_an_engine_that_gives_too_few_rows_fails_its_batch(make_engine: MakeEngine) -> None:
    engine = make_engine()
    compute = engine.compute
    engine.compute = lambda kind, rows: compute(kind, rows)[1:]
    bench = Bench(engine)
    with pytest.raises(ComputationError):
        await bench.submit(1, 2)
    assert await bench.batcher.drain(grace_s=5)


@pytest.mark.parametrize("broken_method", ["padding", "expected_s"])
async def test_a_bug_in_completion_or_scheduling_fails_the_requests_instead_of_hanging_them(
    make_engine: MakeEngine, broken_method: str
) -> None:
    bench = Bench(make_engine(max_concurrency=2))
    with pytest.MonkeyPatch.context() as broken:
        broken.delattr(type(bench.engine), broken_method)
        with pytest.raises(UnexpectedError, match="the server failed on this call"):
            await bench.submit(1)
    assert bench.batcher.queue_rows == 0
    assert (await bench.submit(2)).results.tolist() == [[2, 20]]
    assert await bench.batcher.drain(grace_s=5)


async def test_a_result_that_is_not_finite_fails_its_request_only(
    make_engine: MakeEngine, wait_until: WaitUntil
) -> None:
    bench = Bench(make_engine())
    first = await busy(bench, wait_until)
    requests = [bench.submit(1), bench.submit(2, np.inf), bench.submit(3)]
    await wait_until(lambda: bench.batcher.queue_rows == 4)
    bench.engine.release()
    one, bad, three = await asyncio.gather(*requests, return_exceptions=True)
    assert isinstance(one, InferenceResult)
    assert isinstance(three, InferenceResult)
    assert (one.results.tolist(), three.results.tolist()) == ([[1, 10]], [[3, 30]])
    assert isinstance(bad, ComputationError)
    assert bench.metric("non_finite_total") == 1
    await first
    assert await bench.batcher.drain(grace_s=5)


async def test_a_split_request_fails_once_and_its_rest_is_not_computed(make_engine: MakeEngine) -> None:
    bench = Bench(make_engine(max_rows=4))
    with pytest.raises(NonFiniteActionError, match="NaN or infinity"):
        await bench.submit(1, 2, 3, np.inf, 5, 6, 7, 8, 9, 10)
    assert bench.batcher.queue_rows == 0
    assert bench.metric("queue_rows") == 0
    assert (await bench.submit(2)).results.tolist() == [[2, 20]]
    assert bench.metric("non_finite_total") == 1
    assert await bench.batcher.drain(grace_s=5)
    assert [[9], [10]] not in bench.engine.batches


async def test_a_bug_in_a_dispatch_fails_the_requests_instead_of_losing_them(make_engine: MakeEngine) -> None:
    engine = make_engine(max_rows=4)
    expected_s = engine.expected_s
    engine.expected_s = lambda kind, rows: expected_s(kind, 0 if rows == 4 else rows)  # 0 rows raise
    bench = Bench(engine)  # the scheduler needs no estimate to dispatch a full batch
    with pytest.raises(UnexpectedError):
        await asyncio.wait_for(bench.submit(1, 2, 3, 4), timeout=10)
    assert bench.batcher.queue_rows == bench.metric("queue_rows") == 0
    assert (await bench.submit(2)).results.tolist() == [[2, 20]]
    assert await bench.batcher.drain(grace_s=5)


@pytest.mark.parametrize("max_concurrency", [1, 2])
async def test_drain_completes_every_admitted_request_and_refuses_new_ones(
    make_engine: MakeEngine, wait_until: WaitUntil, max_concurrency: int
) -> None:
    bench = Bench(make_engine(max_rows=2, max_concurrency=max_concurrency), max_batch_delay_s=1000.0)
    bench.engine.hold()
    requests = [bench.submit(0, 0)]
    await wait_until(lambda: len(bench.engine.batches) == 1)
    requests += [bench.submit(value) for value in range(1, 6)]
    await wait_until(lambda: bench.batcher.queue_rows == 5 - 2 * (max_concurrency - 1))
    draining = asyncio.create_task(bench.batcher.drain(grace_s=20))
    await asyncio.sleep(0)  # one turn of the event loop: `drain` has started
    with pytest.raises(DrainingError, match="shutting down"):
        await bench.submit(9)
    assert not draining.done()
    bench.engine.release()
    assert await draining is True
    assert [request.result().results[0, 1] for request in requests] == [0, 10, 20, 30, 40, 50]


@pytest.mark.parametrize("max_concurrency", [1, 2])
async def test_drain_fails_what_is_left_when_the_grace_period_ends(
    make_engine: MakeEngine, wait_until: WaitUntil, max_concurrency: int
) -> None:
    bench = Bench(make_engine(max_rows=1, max_concurrency=max_concurrency))
    bench.engine.hold()
    requests = [bench.submit(value) for value in range(max_concurrency)]
    await wait_until(lambda: len(bench.engine.batches) == max_concurrency)
    queued = bench.batcher.admit(np.ones((2, 1), np.float32))  # as a stream does, which does not withdraw it
    assert bench.metric("queue_rows") == 2
    assert await bench.batcher.drain(grace_s=0.05) is False
    assert bench.metric("queue_rows") == 0
    for request in (*requests, queued.result):
        with pytest.raises(DrainingError):
            await request
    bench.engine.release()
    await wait_until(lambda: bench.metric("batches_total") == max_concurrency)  # finished, results dropped


async def test_drain_ends_when_the_last_caller_gives_up(make_engine: MakeEngine, wait_until: WaitUntil) -> None:
    bench = Bench(make_engine(max_rows=1))
    first = await busy(bench, wait_until)
    waiting = bench.submit(1)
    await wait_until(lambda: bench.batcher.queue_rows == 1)
    draining = asyncio.create_task(bench.batcher.drain(grace_s=20))
    waiting.cancel()
    bench.engine.release()
    assert await draining is True
    await first
    assert bench.engine.batches == [[[-1]]]
