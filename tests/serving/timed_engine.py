"""An engine for tests of the scheduler, which never computes, and requests for its queue."""

import asyncio
import math
from typing import cast

import numpy as np

from serving.batching.in_flight import InFlightBatch, InFlightBatches
from serving.batching.queue import InferenceResult, QueuedRequest
from serving.engine.engine import Kind

NOW_S = 100.0


class TimedEngine:
    """A batch of n rows is expected to take n * `row_s`."""

    def __init__(self, *, max_concurrency: int = 1, max_rows: int = 64, full_rows: int = 8, row_s: float = 0.1) -> None:
        self.max_concurrency = max_concurrency
        self.max_rows = max_rows
        self.full_rows = full_rows
        self.row_s = row_s

    def compute(self, kind: Kind, rows: np.ndarray) -> np.ndarray:
        raise AssertionError("the scheduler computes nothing")

    def padding(self, kind: Kind, rows: int) -> int:
        return 0

    def expected_s(self, kind: Kind, rows: int) -> float:
        assert 1 <= rows <= self.max_rows
        return self.row_s * rows


class _Result:
    """The future of a request, as far as the scheduler reads it."""

    def __init__(self, *, done: bool) -> None:
        self._done = done

    def done(self) -> bool:
        return self._done


def request(
    rows: int = 1,
    *,
    kind: Kind = Kind.ACT,
    priority: int = 0,
    queued_s: float = NOW_S,
    left_s: float = math.inf,
    done: bool = False,
    connection: str = "",
) -> QueuedRequest:
    """A request that is queued at `queued_s`; `left_s` from NOW_S to its deadline."""
    columns = np.zeros((rows, 1), np.float32)
    result = cast("asyncio.Future[InferenceResult]", _Result(done=done))
    return QueuedRequest(columns, kind, queued_s, NOW_S + left_s, priority, result, connection)


def in_flight(*batches: tuple[Kind, int], engine: TimedEngine, dispatched_s: float = NOW_S) -> InFlightBatches:
    """Batches of these kinds and rows that were all dispatched at `dispatched_s`."""
    flying = InFlightBatches()
    for kind, rows in batches:
        flying.add(InFlightBatch(kind, rows, dispatched_s, dispatched_s + engine.expected_s(kind, rows)))
    return flying
