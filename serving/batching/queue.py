"""The request queue of one policy: requests that wait for computation, in order of priority, then of arrival.

It has no thread, task or clock. The batcher owns it and passes the time.
"""

import asyncio
import dataclasses
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from serving.engine.engine import Kind
from serving.errors import ServingError

PRIORITIES = 4  # 0, the default, to 3, the most urgent


class InferenceResult(NamedTuple):
    """The results of one request, and how they were computed."""

    results: np.ndarray  # [rows, results of the kind] float32, finite
    queue_s: float  # from admission to the start of its first batch
    compute_s: float  # from the start of its first batch to the end of its last
    batch_rows: int  # rows of the largest batch that it was part of, padding excluded


@dataclasses.dataclass(eq=False, slots=True)
class QueuedRequest:
    """One admitted request; compared by identity. Batches take its rows from the front, all together or in parts."""

    rows: np.ndarray  # [rows, columns of the kind] float32
    kind: Kind
    queued_s: float  # when it was admitted
    deadline_s: float  # infinite if it has none
    priority: int
    result: asyncio.Future[InferenceResult]
    taken: int = 0  # rows that batches have taken
    completed: int = 0  # rows whose results are in `results`
    results: np.ndarray | None = None  # [rows, ...] once a part of it is computed
    started_s: float = math.inf  # start of its first batch
    ended_s: float = -math.inf  # end of its last completed batch
    batch_rows: int = 0

    @property
    def waiting_rows(self) -> int:
        """Rows that no batch has taken yet."""
        return len(self.rows) - self.taken

    def fail(self, error: ServingError) -> None:
        """Give the caller `error`, unless the request already has a result or its caller is gone."""
        if not self.result.done():
            self.result.set_exception(error)


class RowSlice(NamedTuple):
    """The rows of one request that one batch holds: `request.rows[start:stop]`."""

    request: QueuedRequest
    start: int
    stop: int

    @property
    def rows(self) -> np.ndarray:
        """The rows themselves."""
        return self.request.rows[self.start : self.stop]


class RequestQueue:
    """Requests in order of priority, then of arrival. Every operation takes constant time."""

    def __init__(self) -> None:
        self._by_priority: tuple[OrderedDict[QueuedRequest, None], ...] = tuple(
            OrderedDict() for _ in range(PRIORITIES)
        )
        self._rows_from = [dict.fromkeys(Kind, 0) for _ in range(PRIORITIES)]  # of this priority and of higher ones
        self.rows = 0
        """Rows of all requests that no batch has taken yet."""

    def __bool__(self) -> bool:
        return self.rows > 0

    def __iter__(self) -> Iterator[QueuedRequest]:
        for requests in reversed(self._by_priority):
            yield from requests

    def push(self, request: QueuedRequest) -> None:
        """Add `request` behind those of its priority."""
        self._by_priority[request.priority][request] = None
        self._count(request, request.waiting_rows)

    def remove(self, request: QueuedRequest) -> bool:
        """Remove `request` with its waiting rows. Return whether it was queued."""
        if request not in self._by_priority[request.priority]:
            return False
        del self._by_priority[request.priority][request]
        self._count(request, -request.waiting_rows)
        return True

    def take(self, request: QueuedRequest, max_rows: int) -> RowSlice:
        """Take up to `max_rows` rows from the front of `request`; remove it once no row of it is left."""
        part = RowSlice(request, request.taken, min(request.taken + max_rows, len(request.rows)))
        if part.stop == len(request.rows):
            self.remove(request)
        else:
            self._count(request, part.start - part.stop)
        request.taken = part.stop
        return part

    def peek(self) -> QueuedRequest:
        """Return the request that is next.

        Raises:
            StopIteration: the queue is empty.
        """
        return next(iter(self))

    def age_s(self, now_s: float) -> float:
        """Return the seconds that the oldest request without a taken row has waited; 0 if there is none."""
        # Requests of one priority are in order of arrival, and only the first of them can have taken rows.
        oldest_s = now_s
        for requests in self._by_priority:
            for request in requests:
                if not request.taken:
                    oldest_s = min(oldest_s, request.queued_s)
                    break
        return now_s - oldest_s

    def rows_ahead(self, priority: int) -> Mapping[Kind, int]:
        """Return the rows, by kind, that are computed before a request of `priority` that is pushed now.

        The mapping changes with the queue; do not keep it.
        """
        return self._rows_from[priority]

    def _count(self, request: QueuedRequest, change: int) -> None:
        self.rows += change
        for rows in self._rows_from[: request.priority + 1]:
            rows[request.kind] += change
