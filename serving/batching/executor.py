"""Executor: the threads that call an engine, each a batch at a time, and hand results back to the event loop."""

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
    """What became of one batch."""

    results: np.ndarray | None  # [rows, results of the kind]; None: the engine failed
    all_finite: bool
    started_s: float
    compute_s: float


class _BatchTask(NamedTuple):
    kind: Kind
    blocks: Sequence[np.ndarray]
    then: Callable[[BatchResult], None]


class Executor:
    """Threads for `engine`, as many as may call it at once. Construct it inside a running event loop.

    Args:
        engine: may raise anything.
        clock: monotonic seconds.
    """

    def __init__(self, engine: BatchEngine, *, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[_BatchTask | None] = SimpleQueue()
        self._threads = [Thread(target=self._work, name="compute", daemon=True) for _ in range(engine.max_concurrency)]
        for thread in self._threads:
            thread.start()

    def begin(self, kind: Kind, blocks: Sequence[np.ndarray], then: Callable[[BatchResult], None]) -> None:
        """Compute `blocks`, each [rows, columns of the kind], as one batch, and call `then` on the event loop."""
        self._jobs.put(_BatchTask(kind, blocks, then))

    def end(self, *, wait: bool) -> None:
        """End the threads after what they were given; `wait` until they have."""
        for _ in self._threads:
            self._jobs.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def _work(self) -> None:
        lower_priority()
        while (job := self._jobs.get()) is not None:
            then = functools.partial(job.then, self._compute(job))
            try:
                self._loop.call_soon_threadsafe(then)
            except RuntimeError:  # the loop is closed: the grace was over before this computation was
                return

    def _compute(self, job: _BatchTask) -> BatchResult:
        started_s = self._clock()
        results, all_finite = None, False
        try:
            rows = job.blocks[0] if len(job.blocks) == 1 else np.concatenate(job.blocks)
            results = self._engine.compute(job.kind, rows)
            if len(results) != len(rows):
                raise ValueError(f"the engine gave {len(results)} results for {len(rows)} rows")
            all_finite = bool(np.isfinite(results).all())
        except BaseException:  # a foreign CancelledError would otherwise end the thread
            _LOGGER.exception("a batch of %d calls failed", len(job.blocks))
            results = None
        return BatchResult(results, all_finite, started_s=started_s, compute_s=self._clock() - started_s)
