"""Decides, for one policy, which requests are rejected, when a batch is dispatched, and which rows it holds.

`Scheduler` is pure: it reads the queue, the batches in flight, the load and the time, changes none of them, and has no
clock, lock or I/O. `serving.batching.batcher` carries out its decisions. Every constant is in `BatchingPolicy`.

The rules, in the order in which `decide` applies them:

1. No batch is dispatched while `max_concurrency` batches are in flight. On a CPU that is the number of cores, less one
   while the event loop is busy: a batch that shares a core with the loop delays every request.
2. A full batch is dispatched immediately. So is every batch while the server drains, and the rest of a request that
   was too large for one batch.
3. If a batch in flight is about to end, rows that do not fill a batch wait for its end. The next batch is then fuller,
   and a fuller batch takes less time per row.
4. Otherwise a batch may be delayed while it fills. Below 50 % load the delay is 0; it grows to `max_batch_delay_s` at
   90 %. Fuller batches lower the load, which shortens the delay again. Every wait ends early enough for a full batch to
   meet every deadline in the queue.
5. A batch takes rows of one kind, in the order of the queue (`serving.batching.queue`): by priority, then in turns of
   the connections. A request that could not be answered in time is not computed.

`reject` compares the time to a request's deadline with the estimated time to its answer. On an idle server the estimate
may be too high, and only a batch corrects it. Therefore an idle server rejects only hopeless requests, and admits any
request after a second without a batch. It does not admit all: if other programs leave little of the core, calls wait in
the network library until their deadlines are near, and computing them takes the time that the event loop needs to catch
up.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from serving.batching.in_flight import InFlightBatches
from serving.batching.load import Load
from serving.batching.queue import QueuedRequest, RequestQueue
from serving.engine.engine import BatchEngine, Kind
from serving.errors import OverloadedError, Reason


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchingPolicy:
    """The limits of a queue, and every constant of the scheduler. Seconds are monotonic, shares are from 0 to 1.

    The defaults were tuned on two CPU cores with policies of depth 64 (no record).
    """

    max_queue_rows: int
    """Most rows that may wait."""

    max_queue_age_s: float
    """New requests are rejected while one has waited longer than this. Requests of connections that have more rows
    waiting than the new request's do not count."""

    max_batch_delay_s: float
    """Longest that a batch waits for more rows, at full load."""

    reserve_share: float = 0.125
    """Share of `max_queue_rows` by which a full queue exceeds it, for requests of connections that have at most that
    share waiting. One connection that fills the queue thus does not lock out the others."""

    max_passes: int = 8
    """Batches in a row that may take no row of a priority that waits. Its rows are in the next batch."""

    delay_from_load: float = 0.5
    """Load from which on batches are delayed. Below it, waiting would not fill them."""

    full_delay_load: float = 0.9
    """Load at which batches are delayed by `max_batch_delay_s`."""

    loop_core_load: float = 0.5
    """Load of the event loop above which one core is left to it."""

    loop_recheck_s: float = 0.02
    """Time after which the event loop's load is read again, for that core."""

    near_end_batches: int = 8
    """A batch in flight is near its end when it needs at most the time of this many single-row batches."""

    overdue_s: float = 0.02
    """Time after its expected end for which a batch is still expected to end soon. Low-priority threads are often a few
    milliseconds late."""

    estimate_margin: float = 1.25
    """Factor on the estimated time to an answer when a request with a deadline arrives. Batches take up to a quarter
    longer than usual while both cores are busy."""

    hopeless_share: float = 0.5
    """Share of the estimated time. With less time than that, a request is rejected even if the server is idle."""

    estimate_memory_s: float = 1.0
    """Time without a batch after which the estimate is no longer trusted: an idle server then admits every request, and
    measures anew."""

    load_memory_s: float = 0.1
    """Time constant of the mean compute load."""

    loop_window_s: float = 0.02
    """Interval over which the event loop's load is measured."""

    overload_memory_s: float = 1.0
    """Time after a rejection for which calls are checked before they are read."""

    priority_memory_s: float = 60.0
    """Time for which a call that is not read yet may have the priority of an earlier request."""

    read_every: int = 16
    """Under overload, one call in this many is read in any case. It may have a higher priority than earlier ones."""


class Dispatch(NamedTuple):
    """Compute these rows now. At most one of the two fields is empty."""

    takes: Sequence[tuple[QueuedRequest, int]]
    """Requests of one kind, and how many rows to take from each."""

    expired: Sequence[QueuedRequest]
    """Requests to remove: their deadlines cannot be met, or their callers are gone."""


class WaitUntil(NamedTuple):
    """Decide again at `time_s`, or earlier: when a batch ends, `rows` rows wait, or a new request must start sooner."""

    time_s: float
    rows: float


class Idle(NamedTuple):
    """Decide again when a batch ends, or when `rows` rows wait."""

    rows: float


Decision: TypeAlias = Dispatch | WaitUntil | Idle


class Arrival(NamedTuple):
    """The facts about an arriving request that decide whether it is admitted."""

    now_s: float
    deadline_s: float  # infinite if it has none
    rows: int = 1
    kind: Kind = Kind.ACT
    priority: int = 0
    connection: str = ""


class Rejection(NamedTuple):
    """Why a request is not admitted."""

    reason: Reason  # one of REJECTION_REASONS
    problem: str

    def error(self) -> OverloadedError:
        """Return the error that the caller receives."""
        return OverloadedError(self.problem, reason=self.reason)


@dataclasses.dataclass(frozen=True)
class Scheduler:
    """Makes the decisions for one queue.

    Args:
        engine: its sizes, and how long a batch is expected to take.
        policy: limits and constants.
    """

    engine: BatchEngine
    policy: BatchingPolicy

    def decide(
        self, now_s: float, queue: RequestQueue, in_flight: InFlightBatches, load: Load, *, is_draining: bool = False
    ) -> Decision:
        """Return what to do now."""
        if not queue:
            return Idle(rows=1)
        free = self._concurrency(load.event_loop) - len(in_flight)
        if free <= 0:
            if len(in_flight) >= self.engine.max_concurrency:
                return Idle(rows=math.inf)
            return WaitUntil(now_s + self.policy.loop_recheck_s, rows=math.inf)
        is_urgent = is_draining or queue.rows >= self.engine.full_rows or queue.peek().taken > 0
        if not is_urgent and (wait := self._wait(now_s, queue, in_flight, load)):
            return wait
        max_rows = self._max_rows(queue.rows, free)
        if queue.is_passed_over:
            max_rows = min(max_rows, self.engine.full_rows)  # more urgent requests wait
        return self._dispatch(now_s, queue, max_rows=max_rows)

    def reject(
        self, arriving: Arrival, queue: RequestQueue, in_flight: InFlightBatches, *, event_loop_load: float
    ) -> Rejection | None:
        """Return why a request that arrives now is rejected; None: it may be pushed into `queue`.

        Args:
            arriving: the request.
            queue: the requests before it.
            in_flight: the batches that are being computed.
            event_loop_load: `Load.event_loop`, used only if the request has a deadline.
        """
        policy = self.policy
        if self._is_full(arriving, queue):
            return Rejection(Reason.QUEUE_FULL, f"the queue is full: {queue.rows} of {policy.max_queue_rows} rows wait")
        if (age_s := self._age_s(arriving, queue)) > policy.max_queue_age_s:
            return Rejection(Reason.QUEUE_AGE, f"the queue is too slow: a request has waited for {age_s:.3f} s")
        if arriving.deadline_s == math.inf:
            return None
        is_idle = not (queue or len(in_flight))
        if is_idle and arriving.now_s - in_flight.last_end_s >= policy.estimate_memory_s:
            return None
        answer_s = self._answer_s(arriving, queue, in_flight, self._concurrency(event_loop_load))
        left_s = arriving.deadline_s - arriving.now_s
        if left_s < answer_s * (policy.hopeless_share if is_idle else policy.estimate_margin):
            up_to_s = policy.estimate_margin * answer_s
            problem = f"the deadline is in {left_s:.4f} s, and the answer would take up to {up_to_s:.4f} s"
            return Rejection(Reason.DEADLINE_TOO_SHORT, problem)
        return None

    def _is_full(self, arriving: Arrival, queue: RequestQueue) -> bool:
        """Return whether the queue has no room for a request."""
        policy, total = self.policy, queue.rows + arriving.rows
        if total <= policy.max_queue_rows:
            return False
        reserve = int(policy.reserve_share * policy.max_queue_rows)
        return total > policy.max_queue_rows + reserve or queue.rows_of(arriving.connection) + arriving.rows > reserve

    def _age_s(self, arriving: Arrival, queue: RequestQueue) -> float:
        """Return the age of the queue as far as it concerns a request."""
        age_s = queue.age_s(arriving.now_s)
        if age_s <= self.policy.max_queue_age_s:
            return age_s
        return queue.age_for_s(arriving.now_s, arriving.connection, arriving.rows)

    def start_by_s(self, deadline_s: float, kind: Kind) -> float:
        """Return the latest time at which a full batch of `kind` can start and still meet a deadline."""
        if deadline_s == math.inf:
            return math.inf
        return deadline_s - self.policy.estimate_margin * self.engine.expected_s(kind, self.engine.full_rows)

    def _concurrency(self, event_loop_load: float) -> int:
        """Return how many batches may be in flight now, at least 1."""
        return max(1, self.engine.max_concurrency - (event_loop_load > self.policy.loop_core_load))

    def _max_rows(self, waiting: int, free: int) -> int:
        """Return the most rows of the next batch: its share of `waiting` rows among `free` batches, or a full batch."""
        share = max(1, waiting // free)
        power_of_two = 1 << (share.bit_length() - 1)  # the buckets of ACT, so nothing is padded
        return min(self.engine.max_rows, max(self.engine.full_rows, power_of_two))

    def _wait(self, now_s: float, queue: RequestQueue, in_flight: InFlightBatches, load: Load) -> WaitUntil | None:
        """Return until when a batch that is not full waits for more rows; None: it does not wait."""
        policy, next_end_s = self.policy, in_flight.next_end_s
        near_s = policy.near_end_batches * self.engine.expected_s(Kind.ACT, 1)
        overdue_s = next_end_s + max(policy.overdue_s, near_s)
        is_near = next_end_s - near_s <= now_s < overdue_s
        until_s = max(queue.peek().queued_s, in_flight.last_end_s) + self._batch_delay_s(load)
        if not is_near and now_s >= until_s:
            return None
        start_by_s = self._start_all_by_s(queue)
        if is_near and start_by_s >= next_end_s:
            until_s = overdue_s
        until_s = min(until_s, start_by_s)
        return WaitUntil(until_s, rows=self.engine.full_rows) if now_s < until_s else None

    def _start_all_by_s(self, queue: RequestQueue) -> float:
        """Return the latest time at which full batches can start and still meet every deadline in the queue."""
        earliest_s: dict[Kind, float] = {}
        for request in queue:
            if request.deadline_s < earliest_s.get(request.kind, math.inf):
                earliest_s[request.kind] = request.deadline_s
        return min((self.start_by_s(deadline_s, kind) for kind, deadline_s in earliest_s.items()), default=math.inf)

    def _batch_delay_s(self, load: Load) -> float:
        """Return how many seconds a batch waits for more rows after it could start."""
        policy = self.policy
        share = (max(load) - policy.delay_from_load) / (policy.full_delay_load - policy.delay_from_load)
        return policy.max_batch_delay_s * min(1.0, max(0.0, share))

    def _dispatch(self, now_s: float, queue: RequestQueue, *, max_rows: int) -> Dispatch:
        """Fill a batch of up to `max_rows` from the front of the queue."""
        takes: list[tuple[QueuedRequest, int]] = []
        expired: list[QueuedRequest] = []
        waiting = queue.rows_by_kind()  # rows of each kind, without those in `takes` and `expired`
        taken = 0
        for request in queue:
            if taken >= max_rows:
                break
            kind, rows = request.kind, request.waiting_rows
            first = takes[0][0] if takes else request
            is_late = False
            if request.deadline_s != math.inf:
                ahead = taken if kind is first.kind else 0
                # A request that is alone is computed even if it will probably be late: no other needs the batch.
                is_alone = not takes and sum(waiting.values()) == rows
                beside = max(self._most(request, queue) - taken, rows)  # with its own
                batch_rows = 0 if is_alone else ahead + min(beside, max_rows - taken, waiting[kind])
                is_late = request.deadline_s <= now_s + self._batch_s(kind, batch_rows)
            if is_late or request.result.done():
                expired.append(request)
                waiting[kind] -= rows
                continue
            room = self._room(request, first, taken, max_rows=max_rows)
            if room <= 0:
                break
            takes.append((request, min(room, rows)))
            taken += min(room, rows)
            waiting[kind] -= min(room, rows)
            if room < rows:
                break  # no room for those behind it, so this batch does not make them late
        return Dispatch(takes, expired)

    def _most(self, request: QueuedRequest, queue: RequestQueue) -> int:
        """Return the most rows of a batch with `request`: other connections' large requests only fill a full batch."""
        return max(self.engine.full_rows, queue.rows_of(request.connection))

    def _batch_s(self, kind: Kind, rows: int) -> float:
        """Return how long a batch is expected to take; 0 for no rows."""
        return self.engine.expected_s(kind, rows) if rows else 0.0

    def _room(self, request: QueuedRequest, first: QueuedRequest, taken: int, *, max_rows: int) -> int:
        """Return how many rows of `request` fit into a batch of `taken` rows whose first request is `first`."""
        if request.kind is not first.kind:
            return 0
        # Less urgent rows fill the batch of a more urgent request, but never beyond a full one: that would delay it. So
        # do large requests of another connection.
        full_rows = min(max_rows, self.engine.full_rows)
        if request.priority != first.priority:
            return full_rows - taken
        if request.connection != first.connection and request.waiting_rows > self.engine.full_rows:
            return full_rows - taken
        return max_rows - taken

    def _answer_s(self, arriving: Arrival, queue: RequestQueue, in_flight: InFlightBatches, concurrency: int) -> float:
        """Estimate the seconds until a request that arrives now is computed."""
        engine, rows = self.engine, arriving.rows
        if (waiting := queue.rows + rows) <= engine.max_rows and len(in_flight) < concurrency:
            return engine.expected_s(arriving.kind, waiting)  # the next batch holds all rows and can start now
        ahead_s, own_s = in_flight.remaining_s(arriving.now_s), 0.0
        rows_ahead = queue.rows_ahead(
            arriving.priority, arriving.connection, rows=rows, full_rows=engine.full_rows, max_rows=engine.max_rows
        )
        for kind, ahead in rows_ahead.items():
            total = ahead + rows if kind is arriving.kind else ahead
            if not total:
                continue
            full = (total - 1) // engine.max_rows  # batches before the last
            ahead_s += full * engine.expected_s(kind, engine.max_rows)
            # Requests that arrive later share the last batch; assume as many rows as in the largest one in flight.
            last_s = engine.expected_s(kind, max(total - full * engine.max_rows, in_flight.largest_rows(kind)))
            if kind is arriving.kind:
                own_s = last_s
            else:
                ahead_s += last_s
        # Enough rows wait for `concurrency` batches at a time, so the work ahead is divided among them.
        return ahead_s / concurrency + own_s
