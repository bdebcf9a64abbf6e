"""The threads that compute batches: each takes one batch at a time and hands the results back to the event loop."""

import asyncio
import functools
import logging
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import NamedTuple

import numpy as np

from serving.engine.engine import BatchEngine, Kind
from serving.engine.thread_priority import lower_priority

_LOGGER = logging.getLogger(__name__)


class BatchResult(NamedTuple):
    """The outcome of one batch."""

    results: np.ndarray | None  # [rows, results of the kind]; None: the engine failed
    all_finite: bool
    started_s: float
    compute_s: float


class _Task(NamedTuple):
    kind: Kind
    blocks: Sequence[np.ndarray]
    on_done: Callable[[BatchResult], None]


class Executor:
    """One thread for each batch that `engine` can compute at the same time. Construct it inside a running event loop.

    Args:
        engine: computes the batches; may raise any exception.
        clock: monotonic seconds.
    """

    def __init__(self, engine: BatchEngine, *, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._threads = [Thread(target=self._work, name="compute", daemon=True) for _ in range(engine.max_concurrency)]
        for thread in self._threads:
            thread.start()

    def submit(self, kind: Kind, blocks: Sequence[np.ndarray], on_done: Callable[[BatchResult], None]) -> None:
        """Compute `blocks`, each [rows, columns of the kind], as one batch; call `on_done` on the event loop."""
        self._tasks.put(_Task(kind, blocks, on_done))

    def end(self, *, wait: bool) -> None:
        """End the threads after the submitted batches; with `wait`, return when the threads have ended."""
        for _ in self._threads:
            self._tasks.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def _work(self) -> None:
        lower_priority()
        while (task := self._tasks.get()) is not None:
            done = functools.partial(task.on_done, self._compute(task))
            try:
                self._loop.call_soon_threadsafe(done)
            except RuntimeError:  # the loop is closed: the grace period ended before this batch
                return

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
