"""The waiting line of one policy: calls that are admitted and not yet computed, by priority, bounded in rows and age.

It holds no thread, no task and no clock: the batcher owns it and tells it the time.
"""

import asyncio
import dataclasses
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from serving.engine.engine import Kind

PRIORITIES = 4  # 0, the usual one, to 3, the most urgent


class InferenceResult(NamedTuple):
    """The results of one call, and how they came about."""

    results: np.ndarray  # [rows, results of the kind] float32, finite
    queue_s: float  # from admission to the start of its computation
    compute_s: float  # from the start of its first batch to the end of its last
    batch_rows: int  # rows computed together, padding excluded; of the largest batch that it was in


@dataclasses.dataclass(eq=False, slots=True)
class QueuedRequest:
    """One admitted call; compared by identity. Its rows may be taken in several parts, always from the front."""

    rows: np.ndarray  # [rows, columns of the kind] float32
    kind: Kind
    admitted_s: float
    deadline_s: float  # infinite if the caller waits for ever
    priority: int
    answer: asyncio.Future[InferenceResult]
    taken: int = 0  # rows that went into batches
    settled: int = 0  # rows whose results are there
    results: np.ndarray | None = None  # [rows, ...] once part of it was computed
    started_s: float = math.inf  # of its first batch
    ended_s: float = -math.inf  # of the last of its batches that is settled
    batch_rows: int = 0

    @property
    def waiting_rows(self) -> int:
        """Rows that no batch has taken yet."""
        return len(self.rows) - self.taken


class RowSlice(NamedTuple):
    """The rows of one call that one batch holds: `call.rows[start:stop]`."""

    call: QueuedRequest
    start: int
    stop: int

    @property
    def rows(self) -> np.ndarray:
        """Those rows."""
        return self.call.rows[self.start : self.stop]


class RequestQueue:
    """Calls in order of priority, then of arrival. Leaving from the middle costs as little as from the front."""

    def __init__(self) -> None:
        self._lines: tuple[OrderedDict[QueuedRequest, None], ...] = tuple(OrderedDict() for _ in range(PRIORITIES))
        self._before = [dict.fromkeys(Kind, 0) for _ in range(PRIORITIES)]  # rows of this priority and of higher ones
        self.rows = 0  # of all calls, those already in batches excluded

    def __bool__(self) -> bool:
        return self.rows > 0

    def __iter__(self) -> Iterator[QueuedRequest]:
        for line in reversed(self._lines):
            yield from line

    def join(self, call: QueuedRequest) -> None:
        """Add `call`, whose rows are all waiting, behind those of its priority."""
        self._lines[call.priority][call] = None
        self._count(call, call.waiting_rows)

    def leave(self, call: QueuedRequest) -> bool:
        """Remove `call` with the rows that it has left. Returns whether it was here."""
        if call not in self._lines[call.priority]:
            return False
        del self._lines[call.priority][call]
        self._count(call, -call.waiting_rows)
        return True

    def take(self, call: QueuedRequest, most: int) -> RowSlice:
        """Take up to `most` rows from `call`, which leaves once nothing of it waits."""
        part = RowSlice(call, call.taken, min(call.taken + most, len(call.rows)))
        if part.stop == len(call.rows):
            self.leave(call)
        else:
            self._count(call, part.start - part.stop)
        call.taken = part.stop
        return part

    def head(self) -> QueuedRequest:
        """The call whose turn is next.

        Raises:
            StopIteration: nobody waits.
        """
        return next(iter(self))

    def age_s(self, now_s: float) -> float:
        """How long the oldest call has waited of which nothing is computed yet; 0 if there is none."""
        # The line of one priority is in order of arrival, and only its first call can be partly computed.
        oldest = now_s
        for line in self._lines:
            for call in line:
                if not call.taken:
                    oldest = min(oldest, call.admitted_s)
                    break
        return now_s - oldest

    def rows_before(self, priority: int) -> Mapping[Kind, int]:
        """Rows by kind whose turn comes before that of a call that joins now; a view, not to be kept."""
        return self._before[priority]

    def _count(self, call: QueuedRequest, change: int) -> None:
        self.rows += change
        for before in self._before[: call.priority + 1]:
            before[call.kind] += change
