"""Batcher: the sole owner of one policy's waiting line. It admits calls, batches their rows, sheds, and answers.

The whole story of concurrency:

* Everything but the computation happens on the event loop, so no lock is needed anywhere.
* `admit` puts a call into the waiting line and returns it with a future; `submit` awaits that. The line is bounded in
  rows and by the age of its head. A call that does not fit, or whose deadline would pass while the rows before it are
  computed, is shed at once: it costs no computation, and its caller learns of it in time to do something else (see
  `serving.batching.admission`).
* One task takes rows from the front of the line, as many as fit into a batch, and gives them to a thread that computes
  them; the engine says how many at once. Meanwhile the line fills: the next batch is whoever waited during
  this one. `serving.batching.in_flight` says whether another is worth beginning. A batch that is not full may wait
  a little for company, and only when the computation has been busy; an idle server computes a lone call immediately
  (see `serving.batching.batch_delay`).
* Calls are taken by priority, then in the order they came; a batch holds one kind of work. A call that is larger than
  the room in a batch is split: it gives the rows that fit, stays at the front, and is answered when its last batch is,
  whichever that will be.
* A caller that gives up while it waits leaves the line at once. One whose deadline has passed, or which its batch, as
  full as it is going to be, would answer too late, is refused when its turn comes. None of these is computed. Rows
  already being computed are finished, and thrown away if nobody wants them.
* If the computation of a batch raises, its calls fail with a text of ours, and the next batch goes on as usual.
* `drain` refuses new calls, answers every admitted one, and ends the task and the threads. If that takes too long,
  what is left is failed rather than forgotten: every admitted call is settled exactly once.
"""

import asyncio
import functools
import math
import time
from collections.abc import Callable

import numpy as np

from serving.batching.admission import Admission, Limits, Rejection
from serving.batching.batch_delay import Pace
from serving.batching.completion import Completion, fail
from serving.batching.executor import BatchResult, Executor
from serving.batching.in_flight import InFlightBatch, InFlightBatches
from serving.batching.queue import InferenceResult, QueuedRequest, RequestQueue, RowSlice
from serving.engine.engine import BatchEngine, Kind
from serving.errors import DeadlinePassedError, UnavailableError
from serving.telemetry.metrics import PolicyMetrics


class Batcher:
    """Turns concurrent calls into batches. Construct it inside a running event loop.

    Args:
        engine: computes a batch; only ever called from the batcher's own threads.
        limits: of the waiting line and of patience.
        metrics: receives what happened.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        engine: BatchEngine,
        *,
        limits: Limits,
        metrics: PolicyMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._metrics = metrics
        self._clock = clock
        self._line = RequestQueue()
        self._pace = Pace(limits.wait_s)
        self._lanes = InFlightBatches(engine, loop_share=self._pace.loop_share)
        self._admission = Admission(self._line, self._lanes, engine, limits)
        self._batches: dict[InFlightBatch, list[RowSlice]] = {}
        self._news = asyncio.Event()  # as many rows wait as are enough, a batch has ended, or it is time to drain
        self._enough_rows = 1.0
        self._draining = False
        self._loop = asyncio.get_running_loop()
        self._settlement = Completion(self._line, engine, metrics)
        self._computation = Executor(engine, clock=clock)
        self._task = asyncio.create_task(self._run())

    @property
    def queue_rows(self) -> int:
        """Rows waiting for computation."""
        return self._line.rows

    async def submit(
        self, rows: np.ndarray, *, kind: Kind = Kind.ACT, priority: int = 0, timeout_s: float | None = None
    ) -> InferenceResult:
        """Compute the results for `rows: [rows, columns of the kind]`, at least one.

        Args:
            priority: 0 to 3; calls of a higher one are computed first.
            timeout_s: seconds until the caller has no use for the answer; None: no limit.

        Raises:
            UnavailableError: the batcher is draining.
            DeadlinePassedError: the time was over before the rows were computed.
            OverloadedError: the line is full, too slow, or too long for the caller's deadline.
            ComputationError: the computation failed or gave a result that is not finite.
        """
        call = self.admit(rows, kind=kind, priority=priority, timeout_s=timeout_s)
        try:
            return await call.answer
        finally:
            self.withdraw(call)  # it is still there only if the caller gave up

    def admit(
        self, rows: np.ndarray, *, kind: Kind = Kind.ACT, priority: int = 0, timeout_s: float | None = None
    ) -> QueuedRequest:
        """Let a call join the line; its `answer` will be set, or fail. Arguments and errors as `submit`.

        Whoever loses interest must `withdraw` it.
        """
        if self._draining:
            raise UnavailableError("the server is shutting down; connect to another, or again in a moment")
        if timeout_s is not None and timeout_s <= 0:
            raise DeadlinePassedError("the deadline had passed when the request arrived; allow more time")
        now_s = self._clock()
        deadline_s = math.inf if timeout_s is None else now_s + timeout_s
        shed = self._admission.judge(len(rows), kind=kind, priority=priority, now_s=now_s, deadline_s=deadline_s)
        if shed:
            self._metrics.count_rejected(shed.reason)
            raise shed.error()
        answer: asyncio.Future[InferenceResult] = self._loop.create_future()
        call = QueuedRequest(rows, kind=kind, admitted_s=now_s, deadline_s=deadline_s, priority=priority, answer=answer)
        self._line.join(call)
        self._metrics.queue_rows.set(self._line.rows)
        if self._line.rows >= self._enough_rows or (self._presses(call) and self._lanes.free(now_s) > 0):
            self._news.set()
        return call

    def crowded(self) -> bool:
        """Whether a call was shed of late."""
        return self._admission.crowded(self._clock())

    def judge_unread(self, kind: Kind, *, timeout_s: float | None) -> Rejection | None:
        """Why a call that nobody has read would be shed, whatever it asks for; None: it must be read."""
        if self._draining:
            return None
        now_s = self._clock()
        deadline_s = math.inf if timeout_s is None else now_s + timeout_s
        return self._admission.judge_unread(kind, now_s=now_s, deadline_s=deadline_s)

    def withdraw(self, call: QueuedRequest) -> None:
        """The caller has no use for `call` any more; harmless if it is settled."""
        if self._line.leave(call):
            self._metrics.queue_rows.set(self._line.rows)
        if not call.answer.cancel() and not call.answer.cancelled():
            call.answer.exception()  # seen: asyncio would otherwise report an error that nobody asked for

    async def drain(self, *, grace_s: float) -> bool:
        """Answer every admitted call and stop; after `grace_s` fail what is left. Returns whether none was left."""
        self._draining = True
        self._news.set()
        _, unfinished = await asyncio.wait({self._task}, timeout=grace_s)
        if unfinished:
            self._task.cancel()
            await asyncio.wait({self._task})
        self._computation.end(wait=not unfinished)
        return not unfinished

    async def _run(self) -> None:
        try:
            while await self._wait_for_calls():
                batch = self._take_batch()
                if batch:
                    self._begin(batch)
            while self._batches:
                await self._wait_for_news(math.inf, at_most_s=math.inf)
        finally:
            # Reached with calls left only when the grace is over, or by a mistake of ours; nobody must wait for ever.
            self._draining = True
            for call in (*(part.call for batch in self._batches.values() for part in batch), *self._line):
                fail(call, UnavailableError("the server shut down before this call was computed"))

    async def _wait_for_calls(self) -> bool:
        """Wait until the line holds a batch that is worth computing now; False once it never will again."""
        while True:
            now_s = self._clock()
            if not self._line:
                if self._draining:
                    return False
                # The first to come is looked at, as long as there may be a lane for it.
                await self._wait_for_news(1, at_most_s=math.inf)
            elif self._line.rows >= (enough := self._lanes.enough_rows(now_s)) or self._must_begin(now_s):
                break
            else:
                await self._wait_for_news(enough, at_most_s=self._lanes.ask_again_s(now_s))
        await self._wait_for_company()
        return True

    def _must_begin(self, now_s: float) -> bool:
        """Whether there is a lane for rows that are too few to be worth it, and they cannot wait for more."""
        if self._lanes.free(now_s) <= 0:
            return False
        # Fewer than are enough, so they are soon looked through.
        return self._draining or self._line.head().taken > 0 or any(map(self._presses, self._line))

    def _presses(self, call: QueuedRequest) -> bool:
        """Whether `call` would be late if it waited for a batch under way to end."""
        if call.deadline_s == math.inf:
            return False
        needed_s = self._engine.expected_s(call.kind, min(call.waiting_rows, self._engine.max_rows))
        return call.deadline_s < self._lanes.next_end_s + needed_s

    async def _wait_for_news(self, enough_rows: float, *, at_most_s: float) -> None:
        """Wait until so many rows are in the line, one presses, a batch has ended, or the batcher is to drain."""
        self._enough_rows = enough_rows
        self._news.clear()
        alarm = self._loop.call_later(at_most_s, self._news.set) if at_most_s < math.inf else None
        try:
            await self._news.wait()
        finally:
            if alarm:
                alarm.cancel()

    async def _wait_for_company(self) -> None:
        """Give others the time to join that the pace says is worth it; never past the deadline of the first call."""
        head, now_s, full = self._line.head(), self._clock(), self._engine.full_rows
        if self._line.rows >= full or self._draining:
            return
        slack_s = head.deadline_s - now_s - self._engine.expected_s(head.kind, full)
        wait_s = self._pace.wait_s(now_s, slack_s=slack_s, is_busy=len(self._lanes) > 0)
        if wait_s > 0:
            await self._wait_for_news(full, at_most_s=wait_s)

    def _take_batch(self) -> list[RowSlice]:
        """Take rows of one kind from the front while there is room; drop calls that nobody waits for any more."""
        now_s = self._clock()
        batch: list[RowSlice] = []
        taken, most = 0, self._lanes.most_rows(self._line.rows, now_s=now_s)
        while taken < most and self._line:
            call = self._line.head()
            room = self._room(call, batch, taken, most=most)
            if call.answer.done() or call.deadline_s <= now_s + self._needed_s(call, batch, taken, most=most):
                self._line.leave(call)
                fail(
                    call, DeadlinePassedError("the request waited until its deadline could not be met; allow more time")
                )
            elif room <= 0:
                break
            else:
                batch.append(self._line.take(call, room))
                taken += len(batch[-1].rows)
        self._metrics.queue_rows.set(self._line.rows)
        return batch

    def _room(self, call: QueuedRequest, batch: list[RowSlice], taken: int, *, most: int) -> int:
        """Rows of `call` that may join `batch`, which has `taken`; not above 0: none."""
        if not batch:
            return most
        first = batch[0].call
        if call.kind is not first.kind:
            return 0
        # Whoever is less urgent than the first call must not make its batch much slower.
        return (most if call.priority == first.priority else min(most, self._engine.full_rows)) - taken

    def _needed_s(self, call: QueuedRequest, batch: list[RowSlice], taken: int, *, most: int) -> float:
        """Seconds that `call` needs in `batch`, filled by who waits; 0 if it is alone: nobody gains by its leaving."""
        if call.deadline_s == math.inf or (not batch and self._line.rows == call.waiting_rows):
            return 0.0
        before = taken if batch and batch[0].call.kind is call.kind else 0
        return self._engine.expected_s(call.kind, before + min(most - taken, self._line.rows_before(0)[call.kind]))

    def _begin(self, batch: list[RowSlice]) -> None:
        """Have a thread compute `batch`; `_finish` settles its calls."""
        kind, rows = batch[0].call.kind, sum(part.stop - part.start for part in batch)
        under_way = self._lanes.begin(kind, rows, now_s=self._clock())
        self._batches[under_way] = batch
        self._computation.begin(kind, [part.rows for part in batch], functools.partial(self._finish, under_way))

    def _finish(self, under_way: InFlightBatch, computed: BatchResult) -> None:
        """Settle the calls of a batch."""
        batch = self._batches.pop(under_way)
        self._lanes.end(under_way)
        self._pace.batch_was_under_way(under_way.began_s, self._clock())
        # First, so that the next batch is under way before the loop turns to the answers of this one.
        self._news.set()
        self._settlement.settle(batch, computed)
