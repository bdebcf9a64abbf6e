"""Completion: gives the calls of a computed batch their results, or the reason why there are none.

A call may have given several batches its rows. It is answered when the last of them is settled, and settled only once:
one that has failed, or whose caller is gone, is left as it is.
"""

import logging

import numpy as np

from serving.batching.executor import BatchResult
from serving.batching.queue import InferenceResult, QueuedRequest, RequestQueue, RowSlice
from serving.engine.engine import BatchEngine
from serving.errors import ComputationError, ServingError, UnexpectedError
from serving.telemetry.metrics import PolicyMetrics

_LOGGER = logging.getLogger(__name__)


class Completion:
    """Settles the batches of one waiting line.

    Args:
        line: that a failed call leaves, with the rows that it has left.
        engine: tells how much of a batch was padding.
        metrics: receives what happened.
    """

    def __init__(self, line: RequestQueue, engine: BatchEngine, metrics: PolicyMetrics) -> None:
        self._line = line
        self._engine = engine
        self._metrics = metrics

    def settle(self, batch: list[RowSlice], computed: BatchResult) -> None:
        """Settle what of its calls `batch` holds."""
        try:
            self._settle_batch(batch, computed)
        except Exception:  # a mistake of ours; nobody must wait for ever
            _LOGGER.exception("a batch of %d calls was computed and not answered", len(batch))
            for part in batch:
                self._give_up(part, UnexpectedError())

    def _settle_batch(self, batch: list[RowSlice], computed: BatchResult) -> None:
        if computed.results is None:
            self._metrics.failed_batches.inc()
            for part in batch:
                self._give_up(part, ComputationError("the policy could not be computed; send the next observation"))
            return
        rows, start = len(computed.results), 0
        padding = self._engine.padding(batch[0].call.kind, rows)
        self._metrics.observe_batch(rows, padding=padding, compute_s=computed.compute_s)
        for part in batch:
            results = computed.results[start : start + part.stop - part.start]
            start += len(results)
            if computed.all_finite or np.isfinite(results).all():
                self._settle(part, results, computed=computed)
            else:
                self._metrics.non_finite.inc()
                self._give_up(part, ComputationError("the policy gave NaN or infinity; bring the robot to rest"))

    def _give_up(self, part: RowSlice, error: ServingError) -> None:
        """The call of `part` fails, and what is left of it is not computed."""
        self._line.leave(part.call)
        fail(part.call, error)

    def _settle(self, part: RowSlice, results: np.ndarray, *, computed: BatchResult) -> None:
        """Give the call of `part` its results, and answer it if they are its last."""
        call = part.call
        assert computed.results is not None
        call.started_s = min(call.started_s, computed.started_s)
        call.ended_s = max(call.ended_s, computed.started_s + computed.compute_s)
        call.batch_rows = max(call.batch_rows, len(computed.results))
        if len(results) == len(call.rows):
            call.results = results
        else:
            if call.results is None:
                call.results = np.empty((len(call.rows), results.shape[1]), np.float32)
            call.results[part.start : part.stop] = results
        call.settled += len(results)
        if call.settled == len(call.rows):
            queue_s, compute_s = call.started_s - call.admitted_s, call.ended_s - call.started_s
            self._metrics.observe_queue(queue_s)
            if not call.answer.done():
                call.answer.set_result(InferenceResult(call.results, queue_s, compute_s, batch_rows=call.batch_rows))


def fail(call: QueuedRequest, error: ServingError) -> None:
    """Settle `call` with `error`, unless its caller is gone or it is settled."""
    if not call.answer.done():
        call.answer.set_exception(error)
