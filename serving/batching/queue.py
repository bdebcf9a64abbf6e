"""The request queue of one policy: requests that wait for computation.

They are in order of priority. Within a priority, connections take turns: a connection that has n rows ahead of a
request lets every other connection have n rows too. Requests of one connection are in order of arrival.

Every request has a turn, the number of rows that each connection has had before it. The turn of a new request is the
present turn, or where the last queued request of its connection ends, whichever is later. This is start-time fair
queueing (Goyal, Vin and Cheng, 1997, https://doi.org/10.1109/90.649569).

A priority that waits while `max_passes` batches take none of its rows is next, so no priority starves.

The queue has no thread, task or clock. The batcher owns it and passes the time.
"""

import asyncio
import bisect
import dataclasses
import math
import operator
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from serving.engine.engine import Kind
from serving.errors import ServingError

PRIORITIES = 4  # 0, the default, to 3, the most urgent
_TURN = operator.attrgetter("turn")


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
    connection: str = ""  # that it came over
    turn: int = 0  # its place among the requests of its priority, in rows
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


class _Share:
    """The requests of one connection at one priority."""

    __slots__ = ("next_turn", "rows")

    def __init__(self) -> None:
        self.next_turn = 0  # of its next request
        self.rows = 0


class _Level:
    """The requests of one priority."""

    def __init__(self, priority: int) -> None:
        self.priority = priority
        self.requests: list[QueuedRequest] = []  # by turn, then by arrival
        self.untaken: OrderedDict[QueuedRequest, None] = OrderedDict()  # those without a taken row, by arrival
        self.shares: dict[str, _Share] = {}  # of the connections that have rows here
        self.rows = 0
        self.by_kind = dict.fromkeys(Kind, 0)
        self.turn = 0  # of the rows that were taken last
        self.passes = 0  # batches in a row that took no row of it while it waited

    def insert(self, request: QueuedRequest) -> None:
        """Put `request` behind those of its turn."""
        if self.requests and self.requests[-1].turn > request.turn:
            bisect.insort_right(self.requests, request, key=_TURN)
        else:
            self.requests.append(request)

    def delete(self, request: QueuedRequest) -> None:
        del self.requests[self.requests.index(request, bisect.bisect_left(self.requests, request.turn, key=_TURN))]


class RequestQueue:
    """Requests by priority, and within a priority in turns of the connections.

    Args:
        max_passes: batches in a row that may take no row of a priority that waits.
    """

    def __init__(self, *, max_passes: int = 8) -> None:
        self._max_passes = max_passes
        self._queued: set[QueuedRequest] = set()
        self._levels = [_Level(priority) for priority in range(PRIORITIES)]
        self._order = self._levels[::-1]
        self._has_passed_over = False
        self.rows = 0
        """Rows of all requests that no batch has taken yet."""

    def __bool__(self) -> bool:
        return self.rows > 0

    def __iter__(self) -> Iterator[QueuedRequest]:
        for level in self._order:
            yield from level.requests

    def push(self, request: QueuedRequest) -> None:
        """Add `request` behind those of its priority and connection."""
        level = self._levels[request.priority]
        share = level.shares.get(request.connection)
        if share is None:
            share = level.shares[request.connection] = _Share()
        request.turn = max(level.turn, share.next_turn)
        share.next_turn = request.turn + request.waiting_rows
        level.insert(request)
        if not request.taken:
            level.untaken[request] = None
        self._queued.add(request)
        self._count(request, request.waiting_rows)

    def remove(self, request: QueuedRequest) -> bool:
        """Remove `request` with its waiting rows. Return whether it was queued."""
        if request not in self._queued:
            return False
        self._delete(request, request.waiting_rows)
        return True

    def take(self, request: QueuedRequest, max_rows: int) -> RowSlice:
        """Take up to `max_rows` rows from the front of `request`; remove it once no row of it is left."""
        level = self._levels[request.priority]
        part = RowSlice(request, request.taken, min(request.taken + max_rows, len(request.rows)))
        rows = part.stop - part.start
        level.turn = request.turn
        self._delete(request, rows)
        request.taken = part.stop
        if request.waiting_rows:
            request.turn += rows
            level.insert(request)
            self._queued.add(request)
        return part

    def record_batch(self, priorities: Collection[int]) -> None:
        """Note of which priorities a batch has taken rows. A priority that was passed over too often is next."""
        for level in self._levels:
            level.passes = level.passes + 1 if level.requests and level.priority not in priorities else 0
        self._has_passed_over = any(level.passes >= self._max_passes for level in self._levels)
        self._order = sorted(self._levels, key=lambda level: (level.passes < self._max_passes, -level.priority))

    def peek(self) -> QueuedRequest:
        """Return the request that is next.

        Raises:
            StopIteration: the queue is empty.
        """
        return next(iter(self))

    @property
    def is_passed_over(self) -> bool:
        """Whether a priority is next because it was passed over, although more urgent requests wait."""
        if not self._has_passed_over or not self:
            return False
        return self.peek().priority < max(level.priority for level in self._levels if level.requests)

    def age_s(self, now_s: float) -> float:
        """Return the seconds that the oldest request without a taken row has waited; 0 if there is none."""
        queued_s = now_s
        for level in self._levels:
            if level.untaken:
                queued_s = min(queued_s, next(iter(level.untaken)).queued_s)
        return now_s - queued_s

    def age_for_s(self, now_s: float, connection: str, rows: int) -> float:
        """Return `age_s` without the requests of connections that have more rows waiting than `connection` would have.

        Args:
            now_s: the time.
            connection: over which a request arrives.
            rows: its rows.
        """
        own = self.rows_of(connection) + rows
        queued_s = now_s
        larger: set[str] = set()  # one connection may have thousands of requests, and every call comes here
        for level in self._levels:
            for request in level.untaken:
                if request.connection in larger:
                    continue
                if self.rows_of(request.connection) <= own:
                    queued_s = min(queued_s, request.queued_s)
                    break
                larger.add(request.connection)
        return now_s - queued_s

    def rows_of(self, connection: str) -> int:
        """Return the rows of `connection` that wait."""
        return sum(level.shares[connection].rows for level in self._levels if connection in level.shares)

    def rows_by_kind(self) -> dict[Kind, int]:
        """Return the rows of each kind that wait."""
        return _sum([level for level in self._levels if level.rows])

    def rows_ahead(
        self, priority: int, connection: str, *, rows: int, full_rows: int, max_rows: int
    ) -> Mapping[Kind, int]:
        """Estimate the rows, by kind, that are computed before a request that is pushed now.

        Args:
            priority: of the request.
            connection: over which it came.
            rows: its rows.
            full_rows: rows of a full batch.
            max_rows: most rows of a batch.
        """
        level = self._levels[priority]
        share = level.shares.get(connection)
        own = share.rows if share else 0
        others = (len(level.shares) - (share is not None)) * (own + rows)
        beside = min(level.rows, own + others)
        urgent = [level for level in self._levels[priority + 1 :] if level.rows]
        if not urgent:
            return _scale(level.by_kind, beside)
        batches = math.ceil((beside + rows) / full_rows)
        ahead, same = _scale(_sum(urgent), self._max_passes * batches * max_rows), _scale(level.by_kind, beside)
        return {kind: ahead[kind] + same[kind] for kind in Kind}

    def _delete(self, request: QueuedRequest, rows: int) -> None:
        """Remove `request`, and count `rows` fewer rows."""
        level = self._levels[request.priority]
        self._queued.remove(request)
        level.delete(request)
        level.untaken.pop(request, None)
        self._count(request, -rows)

    def _count(self, request: QueuedRequest, change: int) -> None:
        level = self._levels[request.priority]
        self.rows += change
        level.rows += change
        level.by_kind[request.kind] += change
        share = level.shares[request.connection]
        share.rows += change
        if not share.rows:
            del level.shares[request.connection]


def _sum(levels: Sequence[_Level]) -> dict[Kind, int]:
    """Return the rows of `levels` by kind."""
    if len(levels) == 1:
        return dict(levels[0].by_kind)
    return {kind: sum(level.by_kind[kind] for level in levels) for kind in Kind}


def _scale(rows: Mapping[Kind, int], most: int) -> Mapping[Kind, int]:
    """Return `rows`, reduced in proportion to about `most` if they are more."""
    total = sum(rows.values())
    return rows if total <= most else {kind: math.ceil(count * most / total) for kind, count in rows.items()}
