"""The batcher of one policy: queues requests, has batches computed as the scheduler decides, and completes requests.

How it works, concurrency included:

* Everything but the computation happens on the event loop, so there are no locks.
* `admit` pushes a request into the queue and returns it with a future; `submit` awaits that future. A request that does
  not fit into the queue, or whose deadline would pass before it is computed, is rejected immediately.
* Under overload the transport calls `reject_unread` before it reads a call (`serving.batching.overload`).
* `_step` carries out the decisions of the scheduler (`serving.batching.scheduler`) until the scheduler decides to wait.
  It runs after every event that may change the decision: enough rows are queued, a request cannot wait, a batch ended,
  a timer fired, or the batcher drains.
* A dispatched batch is computed by a thread of `serving.batching.executor` and completed on the event loop
  (`serving.batching.completion`). A batch in flight is never stopped; the results of withdrawn requests are dropped.
* A caller that gives up calls `withdraw`. Rows of its request that are still queued are not computed.
* If the computation of a batch fails, its requests fail, and the next batch is computed as usual. Several failures in a
  row, or a computation that does not end, are reported to `on_broken`.
* `drain` refuses new requests, completes the admitted ones, and ends the threads. After the grace period the remaining
  requests fail. Every admitted request is completed or failed exactly once.
"""

import asyncio
import functools
import logging
import math
import time
from collections.abc import Callable

import numpy as np

from serving.batching.completion import Completion
from serving.batching.executor import BatchResult, Executor
from serving.batching.in_flight import InFlightBatch, InFlightBatches
from serving.batching.load import Load, LoadMeter
from serving.batching.overload import Overload
from serving.batching.queue import InferenceResult, QueuedRequest, RequestQueue
from serving.batching.scheduler import Arrival, BatchingPolicy, Dispatch, Idle, Rejection, Scheduler, WaitUntil
from serving.engine.engine import BatchEngine, Kind
from serving.errors import DeadlinePassedError, DrainingError, ServingError, UnexpectedError
from serving.telemetry.metrics import PolicyMetrics

_LOGGER = logging.getLogger(__name__)


class Batcher:
    """Turns concurrent requests into batches. Construct it inside a running event loop.

    Args:
        engine: computes a batch; called only from the batcher's own threads.
        policy: limits of the queue and constants of the scheduler.
        metrics: of the policy that is served.
        clock: monotonic seconds.
        explains: given a kind and rows of it whose results are not finite: whether the rows are the cause, not the
            policy.
        max_compute_s: a computation that takes longer is given up, and its requests fail.
        on_broken: called with the cause, once or several times, if batches can no longer be computed.
    """

    def __init__(
        self,
        engine: BatchEngine,
        *,
        policy: BatchingPolicy,
        metrics: PolicyMetrics,
        clock: Callable[[], float] = time.monotonic,
        explains: Callable[[Kind, np.ndarray], bool] = lambda _kind, _rows: False,
        max_compute_s: float = 30.0,
        on_broken: Callable[[str], None] = _LOGGER.error,
    ) -> None:
        self.policy = policy
        """Limits of the queue and constants of the scheduler."""
        self._engine = engine
        self._metrics = metrics
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._queue = RequestQueue(max_passes=policy.max_passes)
        self._in_flight = InFlightBatches()
        self._load = LoadMeter(memory_s=policy.load_memory_s, window_s=policy.loop_window_s)
        self._overload = Overload(policy)
        self._scheduler = Scheduler(engine, policy)
        self._completion = Completion(self._queue, engine, metrics, explains=explains)
        self._executor = Executor(engine, clock=clock, max_compute_s=max_compute_s, on_broken=on_broken)
        self._wait: WaitUntil | Idle = Idle(rows=1)
        self._timer: asyncio.TimerHandle | None = None
        self._next_step: asyncio.Handle | None = None
        self._drained: asyncio.Future[None] | None = None  # None until `drain`

    @property
    def queue_rows(self) -> int:
        """Rows that wait for computation."""
        return self._queue.rows

    async def submit(
        self,
        rows: np.ndarray,
        *,
        kind: Kind = Kind.ACT,
        priority: int = 0,
        timeout_s: float | None = None,
        connection: str = "",
    ) -> InferenceResult:
        """Compute the results for `rows: [rows, columns of the kind]`, at least one row.

        Args:
            priority: 0 to 3; requests of a higher priority are computed first.
            timeout_s: seconds until the caller has no use for the results; None: no limit.
            connection: over which the request came. Those of one priority take turns.

        Raises:
            DrainingError: the batcher is draining.
            DeadlinePassedError: the deadline passed before the rows were computed.
            OverloadedError: the queue is full, too slow, or too long for the caller's deadline.
            ComputationError: the computation failed, or a result is NaN or infinite.
            ExtremeInputError: a result is NaN or infinite, and the rows are the cause.
        """
        request = self.admit(rows, kind=kind, priority=priority, timeout_s=timeout_s, connection=connection)
        try:
            return await request.result
        finally:
            self.withdraw(request)  # still queued only if the caller gave up

    def admit(
        self,
        rows: np.ndarray,
        *,
        kind: Kind = Kind.ACT,
        priority: int = 0,
        timeout_s: float | None = None,
        connection: str = "",
    ) -> QueuedRequest:
        """Queue a request and return it immediately; its `result` is set later. Arguments and errors as `submit`.

        A caller that no longer needs the result must `withdraw` the request.
        """
        if self._drained:
            raise DrainingError
        if timeout_s is not None and timeout_s <= 0:
            raise DeadlinePassedError("the deadline passed before the request arrived")
        now_s = self._clock()
        deadline_s = math.inf if timeout_s is None else now_s + timeout_s
        if priority:
            self._overload.record_priority(priority, now_s)
        if rejection := self._reject(Arrival(now_s, deadline_s, len(rows), kind, priority, connection)):
            self._metrics.count_rejected(rejection.reason)
            raise rejection.error()
        request = QueuedRequest(rows, kind, now_s, deadline_s, priority, self._loop.create_future(), connection)
        self._queue.push(request)
        self._metrics.show_queue_rows(self._queue.rows)
        if self._cannot_wait(request):
            self._wake()
        return request

    @property
    def is_overloaded(self) -> bool:
        """Whether a request was rejected so recently that calls are checked before they are read."""
        return self._overload.is_present(self._clock())

    def reject_unread(self, deadline_s: float, *, connection: str = "") -> Rejection | None:
        """Return why a call that arrives now is rejected, regardless of its content; None: read it.

        Args:
            deadline_s: on the batcher's clock; infinite: none.
            connection: over which it comes.
        """
        if self._drained:
            return None
        arriving = self._overload.least_arrival(self._clock(), deadline_s, connection)
        return arriving and self._reject(arriving)

    def withdraw(self, request: QueuedRequest) -> None:
        """Drop `request`, whose result is no longer needed. No effect if it is completed."""
        if self._queue.remove(request):
            self._metrics.show_queue_rows(self._queue.rows)
            self._wake()  # later requests may start sooner, and a drain may be complete
        if not request.result.cancel() and not request.result.cancelled():
            request.result.exception()  # mark as retrieved, or asyncio logs it

    async def drain(self, *, grace_s: float) -> bool:
        """Complete every admitted request, and stop. After `grace_s`, fail the rest. Return whether none failed."""
        self._drained = self._loop.create_future()
        self._wake()
        await asyncio.wait({self._drained}, timeout=grace_s)
        is_drained = self._drained.done()
        if not is_drained:
            error = DrainingError("the server shut down before this request was computed")
            for part in self._in_flight.slices():
                part.request.fail(error)
            self._fail_queued(error)
            self._drained.cancel()
        self._stop_waiting()
        self._executor.end(wait=is_drained)
        return is_drained

    def _reject(self, arriving: Arrival) -> Rejection | None:
        """Return why the scheduler rejects a request or an unread call."""
        has_deadline = arriving.deadline_s != math.inf
        event_loop = self._load.event_loop(arriving.now_s) if has_deadline else 0.0  # used only if there is a deadline
        rejection = self._scheduler.reject(arriving, self._queue, self._in_flight, event_loop_load=event_loop)
        if rejection:
            self._overload.record_rejection(arriving.now_s)
        return rejection

    def _cannot_wait(self, request: QueuedRequest) -> bool:
        """Return whether `request`, which has just arrived, may change the decision to wait."""
        wait = self._wait
        if self._queue.rows >= wait.rows:
            return True
        if request.deadline_s == math.inf or isinstance(wait, Idle) or wait.rows == math.inf:
            return False  # no batch can start before a batch in flight ends or the timer fires
        return self._scheduler.start_by_s(request.deadline_s, request.kind) < wait.time_s

    def _wake(self) -> None:
        """Run `_step` in the next iteration of the event loop, so that requests which arrive together are batched."""
        if self._next_step is None:
            self._next_step = self._loop.call_soon(self._step)

    def _stop_waiting(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if self._next_step:
            self._next_step.cancel()
            self._next_step = None

    def _step(self) -> None:
        """Do what the scheduler decides, until it decides to wait."""
        self._stop_waiting()
        if self._drained and self._drained.done():
            return
        try:
            while isinstance(decision := self._decide(), Dispatch):
                self._dispatch(decision)
        except Exception:  # guard against a bug: fail every caller instead of leaving it waiting
            _LOGGER.exception("scheduling failed; %d queued rows are failed", self._queue.rows)
            self._fail_queued(UnexpectedError())
            decision = Idle(rows=1)
        self._wait = decision
        if isinstance(decision, WaitUntil):
            self._timer = self._loop.call_later(decision.time_s - self._clock(), self._step)
        if self._drained and not self._queue and not len(self._in_flight):
            self._drained.set_result(None)

    def _fail_queued(self, error: ServingError) -> None:
        """Fail every request of the queue, and empty the queue."""
        for request in list(self._queue):
            self._queue.remove(request)
            request.fail(error)
        self._metrics.show_queue_rows(self._queue.rows)

    def _decide(self) -> Dispatch | WaitUntil | Idle:
        now_s = self._clock()
        return self._scheduler.decide(
            now_s, self._queue, self._in_flight, self._read_load(now_s), is_draining=self._drained is not None
        )

    def _read_load(self, now_s: float) -> Load:
        return self._load.read(now_s, is_computing=len(self._in_flight) > 0)

    def _dispatch(self, decision: Dispatch) -> None:
        """Hand the rows of `decision` to a thread, and fail the requests that have expired."""
        for request in decision.expired:
            self._queue.remove(request)
            request.fail(DeadlinePassedError("the request waited until its deadline could not be met"))
        if decision.takes:
            kind, rows, now_s = decision.takes[0][0].kind, sum(rows for _, rows in decision.takes), self._clock()
            ends_s = now_s + self._engine.expected_s(kind, rows)
            # Nothing may raise from here on: a request that has left the queue and is not in flight would be lost.
            slices = [self._queue.take(request, rows) for request, rows in decision.takes]
            self._queue.record_batch({request.priority for request, _ in decision.takes})
            batch = InFlightBatch(kind, rows, now_s, ends_s, slices)
            self._in_flight.add(batch)
            self._executor.submit(kind, [part.rows for part in slices], functools.partial(self._complete, batch))
        self._metrics.show_queue_rows(self._queue.rows)

    def _complete(self, batch: InFlightBatch, result: BatchResult) -> None:
        """Complete the requests of `batch`, which has ended."""
        now_s = self._clock()
        self._in_flight.remove(batch, now_s=now_s)
        self._load.record_batch(batch.dispatched_s, now_s)
        self._step()  # first, so that the next batch is in flight before the event loop sends these results
        self._completion.complete(batch.slices, result)
