"""The threads that compute batches: each takes one batch at a time and hands the results back to the event loop.

A batch whose computation raises an error fails, and the next one is computed as usual. A computation that does not end
within a limit fails too, and its thread is lost. After that, or after several failed batches in a row, the executor
reports that it is broken: only a new process, which opens the device again, can help.
"""

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import NamedTuple

import numpy as np

from serving.engine.engine import BatchEngine, Kind
from serving.engine.thread_priority import lower_priority

_LOGGER = logging.getLogger(__name__)

_MAX_FAILURES = 5  # batches in a row, after which the device counts as broken
# Checks until a computation is given up. With two, a process that was stopped (SIGSTOP) and continues after the limit
# has half the limit left to finish.
_CHECKS = 2


class BatchResult(NamedTuple):
    """The outcome of one batch."""

    results: np.ndarray | None  # [rows, results of the kind]; None: the engine failed
    all_finite: bool
    started_s: float
    compute_s: float
    is_hung: bool = False  # the computation has not ended within the limit


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class _Task:
    kind: Kind
    blocks: Sequence[np.ndarray]
    on_done: Callable[[BatchResult], None]
    submitted_s: float


class Executor:
    """One thread for each batch that `engine` can compute at the same time. Construct it inside a running event loop.

    Args:
        engine: computes the batches; may raise any exception.
        clock: monotonic seconds.
        max_compute_s: a computation that takes longer is given up.
        on_broken: called on the event loop with the cause, once or several times, if batches can no longer be computed.
    """

    def __init__(
        self,
        engine: BatchEngine,
        *,
        clock: Callable[[], float],
        max_compute_s: float = 30.0,
        on_broken: Callable[[str], None] = _LOGGER.error,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._max_compute_s = max_compute_s
        self._on_broken = on_broken
        self._loop = asyncio.get_running_loop()
        self._failures = 0  # failed batches since the last computed one
        self._lost_threads = 0
        self._timers: dict[_Task, asyncio.TimerHandle] = {}  # of the tasks that have not ended
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._threads = [Thread(target=self._work, name="compute", daemon=True) for _ in range(engine.max_concurrency)]
        for thread in self._threads:
            thread.start()

    def submit(self, kind: Kind, blocks: Sequence[np.ndarray], on_done: Callable[[BatchResult], None]) -> None:
        """Compute `blocks`, each [rows, columns of the kind], as one batch; call `on_done` on the event loop."""
        task = _Task(kind, blocks, on_done, self._clock())
        self._watch(task, _CHECKS)
        self._tasks.put(task)

    def end(self, *, wait: bool) -> None:
        """End the threads after the submitted batches; with `wait`, return when they have ended, if none is lost."""
        for timer in self._timers.values():
            timer.cancel()
        for _ in self._threads:
            self._tasks.put(None)
        if wait and not self._lost_threads:
            for thread in self._threads:
                thread.join()

    def _work(self) -> None:
        lower_priority()
        while (task := self._tasks.get()) is not None:
            result = self._compute(task)
            try:
                self._loop.call_soon_threadsafe(self._finish, task, result)
            except RuntimeError:  # the loop is closed: the grace period ended before this batch
                return

    def _watch(self, task: _Task, checks: int) -> None:
        """Give `task` up after `checks` more checks."""
        if checks:
            self._timers[task] = self._loop.call_later(self._max_compute_s / _CHECKS, self._watch, task, checks - 1)
            return
        del self._timers[task]
        self._lost_threads += 1
        took_s = self._clock() - task.submitted_s
        task.on_done(BatchResult(None, all_finite=False, started_s=task.submitted_s, compute_s=took_s, is_hung=True))
        rows = sum(map(len, task.blocks))
        self._on_broken(
            f"the computation of {rows} row(s) has not ended within {self._max_compute_s:g} s (--max-compute-s)"
        )

    def _finish(self, task: _Task, result: BatchResult) -> None:
        timer = self._timers.pop(task, None)
        if timer is None:
            return  # it was given up
        timer.cancel()
        self._failures = self._failures + 1 if result.results is None else 0
        task.on_done(result)
        if self._failures >= _MAX_FAILURES:
            self._on_broken(f"{self._failures} batches in a row failed; the lines above have the errors")

    def _compute(self, task: _Task) -> BatchResult:
        started_s = self._clock()
        results, all_finite = None, False
        try:
            rows = task.blocks[0] if len(task.blocks) == 1 else np.concatenate(task.blocks)
            results = self._engine.compute(task.kind, rows)
            if len(results) != len(rows):
                raise ValueError(f"the engine gave {len(results)} results for {len(rows)} rows")
            all_finite = bool(np.isfinite(results).all())
        except BaseException:  # a CancelledError from the engine would otherwise end the thread
            _LOGGER.exception("a batch of %d requests failed", len(task.blocks))
            results = None
        return BatchResult(results, all_finite, started_s=started_s, compute_s=self._clock() - started_s)
