"""The threads that compute: errors, computations that do not end, and when the executor counts as broken.

The event loop's timers are run by hand, so no test waits for a limit.
"""

import asyncio
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from serving.batching.executor import BatchResult, Executor
from serving.engine.engine import Kind
from tests.serving.batcher_bench import MakeEngine, WaitUntil

ROWS = [np.ones((1, 1), np.float32)]


class Timers:
    """The event loop's timers of a second and more, which fire only when a test lets them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        self._call_later = loop.call_later
        self._held: list[tuple[float, asyncio.TimerHandle, Callable[[], None]]] = []
        monkeypatch.setattr(loop, "call_later", self._hold, raising=False)

    def _hold(self, delay_s: float, call: Callable[..., None], *arguments: Any) -> asyncio.TimerHandle:
        handle = self._call_later(delay_s, call, *arguments)
        if delay_s >= 1:
            self._held.append((delay_s, handle, functools.partial(call, *arguments)))
        return handle

    def fire(self) -> float:
        """Run the only timer that is not cancelled; return its delay."""
        ((delay_s, handle, call),) = self.active()
        handle.cancel()
        call()
        return delay_s

    def active(self) -> list[tuple[float, asyncio.TimerHandle, Callable[[], None]]]:
        return [timer for timer in self._held if not timer[1].cancelled()]


async def test_a_computation_that_does_not_end_is_given_up_after_both_halves_of_the_limit(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, wait_until: WaitUntil
) -> None:
    engine, results, broken = make_engine(), [], []
    timers = Timers(monkeypatch)
    executor = Executor(engine, clock=engine.clock, max_compute_s=30.0, on_broken=broken.append)
    engine.hold()
    executor.submit(Kind.ACT, ROWS, results.append)
    await wait_until(lambda: len(engine.batches) == 1)
    engine.now_s += 60  # the process was stopped for a minute: the first half of the limit has passed
    assert timers.fire() == 15
    assert (results, broken) == ([], [])
    assert timers.fire() == 15
    assert results == [BatchResult(None, all_finite=False, started_s=100.0, compute_s=60.0, is_hung=True)]
    assert broken == ["the computation of 1 row(s) has not ended within 30 s (--max-compute-s)"]
    engine.release()
    executor.submit(Kind.ACT, ROWS, results.append)
    await wait_until(lambda: len(results) == 2)
    assert results[1].results is not None  # and the late result of the first one went nowhere
    executor.end(wait=True)  # does not wait for the lost thread


async def test_a_computation_that_ends_leaves_no_timer(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, wait_until: WaitUntil
) -> None:
    engine, results = make_engine(), list[BatchResult]()
    timers = Timers(monkeypatch)
    executor = Executor(engine, clock=engine.clock)
    executor.submit(Kind.ACT, ROWS, results.append)
    await wait_until(lambda: len(results) == 1)
    assert timers.active() == []
    executor.end(wait=True)


async def test_five_failures_in_a_row_break_it_and_a_success_between_them_does_not(make_engine: MakeEngine) -> None:
    engine, broken = make_engine(), list[str]()
    executor = Executor(engine, clock=engine.clock, on_broken=broken.append)

    async def compute(*, failing: bool) -> bool:
        engine.failure = RuntimeError("the device says no") if failing else None
        result = asyncio.get_running_loop().create_future()
        executor.submit(Kind.ACT, ROWS, result.set_result)
        return (await result).results is not None

    assert [await compute(failing=True) for _ in range(4)] == [False] * 4
    assert await compute(failing=False)
    assert [await compute(failing=True) for _ in range(4)] == [False] * 4
    assert broken == []
    assert not await compute(failing=True)
    assert broken == ["5 batches in a row failed; the lines above have the errors"]
    executor.end(wait=True)
