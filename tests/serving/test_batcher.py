"""The batcher alone, with an engine whose answers are worked out by hand: a row's action is [sum, 10 * sum]."""

import asyncio

import grpc
import numpy as np
import pytest

from serving.batching.queue import InferenceResult
from serving.engine.engine import Kind
from serving.errors import (
    ComputationError,
    DeadlinePassedError,
    OverloadedError,
    ServingError,
    UnavailableError,
    UnexpectedError,
)
from tests.serving.batcher_bench import Bench, MakeEngine, WaitUntil, a_while, busy, run


def test_a_lone_call_is_computed_alone_and_at_once(make_engine: MakeEngine) -> None:
    async def test() -> None:
        engine = make_engine(max_rows=8)
        engine.compute_s = 0.25
        bench = Bench(engine)
        answer = await bench.submit(1, 2, 3)
        np.testing.assert_array_equal(answer.results, [[1, 10], [2, 20], [3, 30]])
        assert (answer.queue_s, answer.compute_s, answer.batch_rows) == (0.0, 0.25, 3)
        assert bench.metric("rows_total") == 3
        assert bench.metric("batches_total") == 1
        assert bench.metric("padding_rows_total") == 5
        assert bench.metric("compute_seconds_sum") == 0.25
        assert bench.metric("queue_seconds_count") == 1
        assert await bench.batcher.drain(grace_s=5)

    run(test())


def test_calls_that_wait_during_a_batch_form_the_next_one(make_engine: MakeEngine, wait_until: WaitUntil) -> None:
    async def test() -> None:
        bench = Bench(make_engine(max_rows=8))
        first = await busy(bench, wait_until)
        calls = [bench.submit(1), bench.submit(2, 3), bench.submit(4, 5, 6)]
        await wait_until(lambda: bench.batcher.queue_rows == 6)
        assert bench.metric("queue_rows") == 6
        bench.engine.now_s += 2.0
        bench.engine.let_go()
        answers = await asyncio.gather(first, *calls)
        assert bench.engine.batches == [[[-1]], [[1], [2], [3], [4], [5], [6]]]
        assert [answer.results[:, 0].tolist() for answer in answers] == [[-1], [1], [2, 3], [4, 5, 6]]
        assert [answer.batch_rows for answer in answers] == [1, 6, 6, 6]
        assert [answer.queue_s for answer in answers] == [0, 2, 2, 2]
        assert bench.metric("queue_rows") == 0
        assert bench.metric("batches_total") == 2
        assert bench.metric("queue_seconds_sum") == 6
        await bench.batcher.drain(grace_s=5)

    run(test())


def test_a_batch_never_exceeds_the_cap_and_a_call_is_split_rather_than_overtaken(
    make_engine: MakeEngine, wait_until: WaitUntil
) -> None:
    async def test() -> None:
        bench = Bench(make_engine(max_rows=4))
        first = await busy(bench, wait_until)
        calls = [bench.submit(1, 2, 3), bench.submit(4, 5), bench.submit(6), bench.submit(7, 8, 9, 10)]
        await wait_until(lambda: bench.batcher.queue_rows == 10)
        bench.engine.let_go()
        answers = await asyncio.gather(first, *calls)
        assert [answer.results[:, 1].tolist() for answer in answers[1:]] == [
            [10, 20, 30],
            [40, 50],
            [60],
            [70, 80, 90, 100],
        ]
        assert bench.engine.batches[1:] == [[[1], [2], [3], [4]], [[5], [6], [7], [8]], [[9], [10]]]
        await bench.batcher.drain(grace_s=5)

    run(test())


def test_a_call_that_does_not_fit_into_the_queue_is_shed(make_engine: MakeEngine, wait_until: WaitUntil) -> None:
    async def test() -> None:
        bench = Bench(make_engine(max_rows=4), max_queue_rows=4)
        first = await busy(bench, wait_until)
        waiting = bench.submit(1, 2, 3)
        await wait_until(lambda: bench.batcher.queue_rows == 3)
        with pytest.raises(OverloadedError, match="3 of 4 rows are waiting") as shed:
            await bench.submit(4, 5)
        assert shed.value.status is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert shed.value.trailers == (("grpc-retry-pushback-ms", "-1"),)
        fits = bench.submit(6)
        bench.engine.let_go()
        await asyncio.gather(first, waiting, fits)
        assert bench.engine.batches[1:] == [[[1], [2], [3], [6]]]
        await bench.batcher.drain(grace_s=5)

    run(test())


def test_nobody_joins_behind_a_call_that_has_waited_too_long(make_engine: MakeEngine, wait_until: WaitUntil) -> None:
    async def test() -> None:
        bench = Bench(make_engine(), queue_age_s=1.0)
        first = await busy(bench, wait_until)
        waiting = bench.submit(1)
        await wait_until(lambda: bench.batcher.queue_rows == 1)
        bench.engine.now_s += 1.5
        with pytest.raises(OverloadedError, match=r"calls have waited for 1\.500 s"):
            await bench.submit(2)
        assert bench.metric("rejected_total", reason="queue_age") == 1
        bench.engine.let_go()
        await asyncio.gather(first, waiting)
        assert (await bench.submit(3)).results.tolist() == [[3, 30]]
        await bench.batcher.drain(grace_s=5)

    run(test())


def test_a_call_that_would_be_answered_too_late_is_shed_at_once(make_engine: MakeEngine, wait_until: WaitUntil) -> None:
    async def test() -> None:
        engine = make_engine(max_rows=2)
        engine.compute_s = 1.0  # for any batch
        bench = Bench(engine)
        first = await busy(bench, wait_until)
        waiting = bench.submit(1, 2, 3, 4)
        await wait_until(lambda: bench.batcher.queue_rows == 4)
        # One second is left of the first batch, then come two of the call before, then its own: four in all.
        # With a quarter more, since batches do not all take the same:
        with pytest.raises(OverloadedError, match=r"the answer would take up to 5\.0000 s, and 4\.9000 s are left"):
            await bench.submit(5, timeout_s=4.9)
        assert bench.metric("rejected_total", reason="deadline_too_short") == 1
        in_time = bench.submit(6, timeout_s=5.1)
        await wait_until(lambda: bench.batcher.queue_rows == 5)
        bench.engine.let_go()
        await asyncio.gather(first, waiting, in_time)
        await bench.batcher.drain(grace_s=5)

    run(test())


def test_a_busy_server_waits_for_company_until_a_batch_is_full(make_engine: MakeEngine) -> None:
    async def test() -> None:
        engine = make_engine(max_rows=4)
        bench = Bench(engine, wait_s=1000.0)
        engine.compute_s = 10.0  # by its clock: busy from now on
        await bench.submit(1)
        engine.compute_s = 0.0
        waiting = [bench.submit(2), bench.submit(3, 4)]
        await a_while()
        assert len(engine.batches) == 1  # nothing is computed but the first
        await asyncio.gather(bench.submit(5), *waiting)
        assert engine.batches[1:] == [[[2.0], [3.0], [4.0], [5.0]]]

    run(test())


def test_a_busy_server_waits_for_company_no_longer_than_it_may(make_engine: MakeEngine) -> None:
    async def test() -> None:
        engine = make_engine(max_rows=4)
        bench = Bench(engine, wait_s=0.01)
        engine.compute_s = 10.0
        await bench.submit(1)
        engine.compute_s = 0.0
        await bench.submit(2)
        late = bench.submit(3, timeout_s=0.5)  # of which no computation takes anything
        assert (await late).batch_rows == 1
        assert await bench.batcher.drain(grace_s=5)

    run(test())


def test_a_higher_priority_is_computed_first(make_engine: MakeEngine, wait_until: WaitUntil) -> None:
    async def test() -> None:
        bench = Bench(make_engine(max_rows=1))
        first = await busy(bench, wait_until)
        calls = [bench.submit(value, priority=priority) for value, priority in ((1, 0), (2, 3), (3, 1), (4, 3))]
        await wait_until(lambda: bench.batcher.queue_rows == 4)
        bench.engine.let_go()
        await asyncio.gather(first, *calls)
        assert bench.engine.batches[1:] == [[[2]], [[4]], [[3]], [[1]]]
        await bench.batcher.drain(grace_s=5)

    run(test())


def test_an_urgent_call_shares_its_batch_with_less_urgent_ones_only_until_it_is_full(
    make_engine: MakeEngine, wait_until: WaitUntil
) -> None:
    async def test() -> None:
        bench = Bench(make_engine(max_rows=8, full_rows=4))
        first = await busy(bench, wait_until)
        calls = [bench.submit(*range(1, 8)), bench.submit(-2, priority=2), bench.submit(-3, priority=2)]
        await wait_until(lambda: bench.batcher.queue_rows == 9)
        bench.engine.let_go()
        await asyncio.gather(first, *calls)
        assert bench.engine.batches[1:] == [[[-2], [-3], [1], [2]], [[3], [4], [5], [6]], [[7]]]
        await bench.batcher.drain(grace_s=5)

    run(test())


def test_a_batch_holds_one_kind_of_work(make_engine: MakeEngine, wait_until: WaitUntil) -> None:
    async def test() -> None:
        bench = Bench(make_engine())
        first = await busy(bench, wait_until)
        calls = [bench.submit(value, kind=kind) for value, kind in ((1, Kind.ACT), (2, Kind.SCORE), (3, Kind.ACT))]
        await wait_until(lambda: bench.batcher.queue_rows == 3)
        bench.engine.let_go()
        await asyncio.gather(first, *calls)
        assert bench.engine.batches[1:] == [[[1]], [[2]], [[3]]]
        assert bench.engine.kinds[1:] == [Kind.ACT, Kind.SCORE, Kind.ACT]
        await bench.batcher.drain(grace_s=5)

    run(test())


def test_a_deadline_that_has_passed_costs_no_compute(make_engine: MakeEngine, wait_until: WaitUntil) -> None:
    async def test() -> None:
        bench = Bench(make_engine())
        first = await busy(bench, wait_until)
        with pytest.raises(DeadlinePassedError, match="when the request arrived"):
            await bench.submit(1, timeout_s=0)
        late, in_time = bench.submit(2, 3, timeout_s=5), bench.submit(4, timeout_s=7)
        await wait_until(lambda: bench.batcher.queue_rows == 3)
        bench.engine.now_s += 6
        bench.engine.let_go()
        with pytest.raises(DeadlinePassedError, match="waited until its deadline could not be met"):
            await late
        assert (await in_time).results.tolist() == [[4, 40]]
        await first
        assert bench.engine.batches == [[[-1]], [[4]]]
        assert bench.batcher.queue_rows == 0
        await bench.batcher.drain(grace_s=5)

    run(test())


@pytest.mark.parametrize("somebody_else_waits", [True, False])
def test_a_call_that_its_batch_would_answer_too_late_makes_room_for_another(
    make_engine: MakeEngine, wait_until: WaitUntil, somebody_else_waits: bool
) -> None:
    async def test() -> None:
        engine = make_engine()
        engine.compute_s = 1.0
        bench = Bench(engine)
        first = await busy(bench, wait_until)
        late = bench.submit(2, timeout_s=3.0)
        others = [bench.submit(3)] if somebody_else_waits else []
        await wait_until(lambda: bench.batcher.queue_rows == 1 + len(others))
        engine.now_s += 1.5  # the first batch takes longer than it should: half a second is left after it
        engine.let_go()
        await asyncio.gather(first, *others)
        if others:
            with pytest.raises(DeadlinePassedError, match="waited until its deadline could not be met"):
                await late
        else:  # nobody gains by refusing it
            await late
        assert engine.batches[1:] == [[[3.0 if others else 2.0]]]
        await bench.batcher.drain(grace_s=5)

    run(test())


def test_a_call_is_not_taken_into_a_batch_that_others_make_too_slow_for_it(
    make_engine: MakeEngine, wait_until: WaitUntil
) -> None:
    async def test() -> None:
        engine = make_engine()
        engine.row_s = 1.0
        bench = Bench(engine)
        first = await busy(bench, wait_until)
        hurried = bench.submit(2, timeout_s=5.0)  # 1.25 s for the first batch and for its own: in time
        others = bench.submit(3, 4, 5)
        await wait_until(lambda: bench.batcher.queue_rows == 4)
        engine.now_s += 1.5  # 3.5 s are left; a batch of all four rows takes 4
        engine.let_go()
        await asyncio.gather(first, others)
        with pytest.raises(DeadlinePassedError, match="waited until its deadline could not be met"):
            await hurried
        assert engine.batches[1:] == [[[3.0], [4.0], [5.0]]]
        await bench.batcher.drain(grace_s=5)

    run(test())


def test_a_caller_that_gives_up_frees_its_place_at_once(make_engine: MakeEngine, wait_until: WaitUntil) -> None:
    async def test() -> None:
        bench = Bench(make_engine(max_rows=2), max_queue_rows=4)
        first = await busy(bench, wait_until)
        given_up, kept = bench.submit(1, 2), bench.submit(3, 4)
        await wait_until(lambda: bench.batcher.queue_rows == 4)
        given_up.cancel()
        await asyncio.wait({given_up})
        assert bench.batcher.queue_rows == 2  # while the engine is still busy
        successor = bench.submit(5)
        bench.engine.let_go()
        await asyncio.gather(first, kept, successor)
        assert bench.engine.batches == [[[-1]], [[3], [4]], [[5]]]
        await bench.batcher.drain(grace_s=5)

    run(test())


def test_a_caller_that_gives_up_during_its_computation_harms_nobody(
    make_engine: MakeEngine, wait_until: WaitUntil
) -> None:
    async def test() -> None:
        bench = Bench(make_engine())
        first = await busy(bench, wait_until)
        first.cancel()
        bench.engine.let_go()
        assert (await bench.submit(2)).results.tolist() == [[2, 20]]
        assert bench.batcher.queue_rows == 0
        await bench.batcher.drain(grace_s=5)

    run(test())


@pytest.mark.parametrize("failure", [RuntimeError("a secret"), asyncio.CancelledError("a secret")])
def test_an_engine_that_raises_fails_its_batch_only(make_engine: MakeEngine, failure: BaseException) -> None:
    async def test() -> None:
        bench = Bench(make_engine())
        bench.engine.failure = failure
        with pytest.raises(ComputationError) as failed:
            await bench.submit(1)
        assert failed.value.status is grpc.StatusCode.INTERNAL
        assert "secret" not in str(failed.value)
        bench.engine.failure = None
        assert (await bench.submit(2)).results.tolist() == [[2, 20]]
        assert bench.metric("failed_batches_total") == 1
        assert bench.metric("batches_total") == 1
        await bench.batcher.drain(grace_s=5)

    run(test())


def test_an_engine_that_gives_too_few_rows_fails_its_batch(make_engine: MakeEngine) -> None:
    async def test() -> None:
        engine = make_engine()
        whole = engine.compute
        engine.compute = lambda kind, rows: whole(kind, rows)[1:]
        bench = Bench(engine)
        with pytest.raises(ComputationError):
            await bench.submit(1, 2)
        await bench.batcher.drain(grace_s=5)

    run(test())


def test_a_batch_that_cannot_be_settled_fails_its_calls_and_nobody_waits_for_ever(make_engine: MakeEngine) -> None:
    async def test() -> None:
        engine = make_engine()
        bench = Bench(engine)
        with pytest.MonkeyPatch.context() as broken:
            broken.delattr(type(engine), "padding")  # a mistake of ours
            with pytest.raises(UnexpectedError, match="the server failed on this call"):
                await bench.submit(1)
        assert (await bench.submit(2)).results.tolist() == [[2, 20]]
        assert await bench.batcher.drain(grace_s=5)

    run(test())


def test_an_action_that_is_not_finite_fails_its_call_only(make_engine: MakeEngine, wait_until: WaitUntil) -> None:
    async def test() -> None:
        bench = Bench(make_engine())
        first = await busy(bench, wait_until)
        calls = [bench.submit(1), bench.submit(2, np.inf), bench.submit(3)]
        await wait_until(lambda: bench.batcher.queue_rows == 4)
        bench.engine.let_go()
        one, bad, three = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(one, InferenceResult)
        assert isinstance(three, InferenceResult)
        assert (one.results.tolist(), three.results.tolist()) == ([[1, 10]], [[3, 30]])
        assert isinstance(bad, ComputationError)
        assert bench.metric("non_finite_total") == 1
        await first
        await bench.batcher.drain(grace_s=5)

    run(test())


def test_drain_answers_everything_admitted_and_refuses_the_rest(make_engine: MakeEngine, wait_until: WaitUntil) -> None:
    async def test() -> None:
        bench = Bench(make_engine(max_rows=2))
        first = await busy(bench, wait_until)
        calls = [bench.submit(value) for value in range(5)]
        await wait_until(lambda: bench.batcher.queue_rows == 5)
        draining = asyncio.create_task(bench.batcher.drain(grace_s=20))
        await asyncio.sleep(0)
        with pytest.raises(UnavailableError, match="shutting down"):
            await bench.submit(9)
        assert not draining.done()
        bench.engine.let_go()
        assert await draining is True
        assert all(call.done() for call in (first, *calls))
        assert [call.result().results[0, 1] for call in calls] == [0, 10, 20, 30, 40]

    run(test())


def test_drain_gives_up_after_its_grace_and_leaves_nobody_waiting(
    make_engine: MakeEngine, wait_until: WaitUntil
) -> None:
    async def test() -> None:
        bench = Bench(make_engine(max_rows=1))
        first = await busy(bench, wait_until)
        second = bench.submit(1)
        await wait_until(lambda: bench.batcher.queue_rows == 1)
        assert await bench.batcher.drain(grace_s=0.05) is False
        for call in (first, second):
            with pytest.raises(UnavailableError):
                await call
        bench.engine.let_go()

    run(test())


def test_errors_carry_the_statuses_of_the_contract() -> None:
    statuses = {error.__name__: error.status for error in ServingError.__subclasses__()}
    assert statuses == {
        "InvalidRequestError": grpc.StatusCode.INVALID_ARGUMENT,
        "NotFoundError": grpc.StatusCode.NOT_FOUND,
        "OverloadedError": grpc.StatusCode.RESOURCE_EXHAUSTED,
        "DeadlinePassedError": grpc.StatusCode.DEADLINE_EXCEEDED,
        "UnavailableError": grpc.StatusCode.UNAVAILABLE,
        "ComputationError": grpc.StatusCode.INTERNAL,
        "UnexpectedError": grpc.StatusCode.INTERNAL,
    }
