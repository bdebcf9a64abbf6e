"""Gives the requests of a computed batch their results, or an error.

A request may be split over several batches; the last one completes it. A request that has already failed, or that was
withdrawn, does not change.
"""

import logging
from collections.abc import Callable, Sequence

import numpy as np

from serving.batching.executor import BatchResult
from serving.batching.queue import InferenceResult, QueuedRequest, RequestQueue, RowSlice
from serving.engine.engine import BatchEngine, Kind
from serving.errors import (
    ComputationError,
    ComputationTimeoutError,
    ExtremeInputError,
    NonFiniteActionError,
    ServingError,
    UnexpectedError,
)
from serving.telemetry.metrics import PolicyMetrics

_LOGGER = logging.getLogger(__name__)
_NO_ROWS = np.empty((0, 0), np.float32)


class Completion:
    """Completes the requests of one queue.

    Args:
        queue: failed requests are removed from it.
        engine: gives the padding of a batch.
        metrics: of the policy that is served.
        explains: given a kind and rows of it whose results are not finite: whether the rows are the cause, not the
            policy.
    """

    def __init__(
        self,
        queue: RequestQueue,
        engine: BatchEngine,
        metrics: PolicyMetrics,
        *,
        explains: Callable[[Kind, np.ndarray], bool],
    ) -> None:
        self._queue = queue
        self._engine = engine
        self._metrics = metrics
        self._explains = explains

    def complete(self, slices: Sequence[RowSlice], batch: BatchResult) -> None:
        """Complete the requests of `slices`, which are the rows of one batch in order."""
        try:
            self._complete_batch(slices, batch)
        except Exception:  # guard against a bug: fail every caller instead of leaving it waiting
            _LOGGER.exception("a batch of %d requests was computed, and completing them failed", len(slices))
            for part in slices:
                self._fail(part.request, UnexpectedError())

    def _complete_batch(self, slices: Sequence[RowSlice], batch: BatchResult) -> None:
        if batch.results is None:
            self._metrics.failed_batches.inc()
            for part in slices:
                if batch.is_hung:
                    self._fail(
                        part.request,
                        ComputationTimeoutError("the computation took too long and was given up; the server stops"),
                    )
                else:
                    self._fail(
                        part.request,
                        ComputationError("the policy could not be computed"),
                    )
            return
        rows, start = len(batch.results), 0
        padding = self._engine.padding(slices[0].request.kind, rows)
        self._metrics.observe_batch(rows, padding=padding, compute_s=batch.compute_s)
        for part in slices:
            results = batch.results[start : start + part.stop - part.start]
            start += len(results)
            if batch.all_finite or np.isfinite(results).all():
                self._complete_slice(part, results, batch)
            elif not part.request.result.done():  # another part of it may have failed before, and was counted
                self._fail(part.request, self._non_finite(part, results))

    def _complete_slice(self, part: RowSlice, results: np.ndarray, batch: BatchResult) -> None:
        """Add `results` to the request of `part`. Complete the request if no row of it is missing."""
        request = part.request
        request.started_s = min(request.started_s, batch.started_s)
        request.ended_s = max(request.ended_s, batch.started_s + batch.compute_s)
        request.batch_rows = max(request.batch_rows, 0 if batch.results is None else len(batch.results))
        if len(results) == len(request.rows):
            request.results = results
        else:
            if request.results is None:
                request.results = np.empty((len(request.rows), results.shape[1]), np.float32)
            request.results[part.start : part.stop] = results
        request.completed += len(results)
        if request.completed == len(request.rows):
            request.rows = _NO_ROWS  # the reply may wait long, and the rows are no longer needed
            queue_s, compute_s = request.started_s - request.queued_s, request.ended_s - request.started_s
            self._metrics.observe_queue(queue_s)
            if not request.result.done():
                result = InferenceResult(request.results, queue_s, compute_s, batch_rows=request.batch_rows)
                request.result.set_result(result)

    def _non_finite(self, part: RowSlice, results: np.ndarray) -> ServingError:
        """Count and return the failure of a request whose `results`, those of `part`, are not all finite."""
        rows = part.rows[~np.isfinite(results).all(axis=1)]
        if self._explains(part.request.kind, rows):
            self._metrics.extreme_input.inc()
            return ExtremeInputError(
                "the policy gave NaN or infinity, because a state or a goal is far from those of its training"
            )
        self._metrics.non_finite.inc()
        return NonFiniteActionError("the policy gave NaN or infinity")

    def _fail(self, request: QueuedRequest, error: ServingError) -> None:
        """Fail `request`; the rest of its rows are not computed."""
        if self._queue.remove(request):
            self._metrics.show_queue_rows(self._queue.rows)
        request.fail(error)
