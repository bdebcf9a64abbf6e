"""Batcher: the sole owner of one policy's queue. It admits calls, batches their rows, sheds, and answers.

The whole story of concurrency:

* Everything but the computation happens on the event loop, so no lock is needed anywhere.
* `submit` admits a call by putting its rows into the queue, and waits for its own future. The queue is bounded in
  rows; a call that does not fit is shed at once.
* One task takes as many calls from the front of the queue as fit into `max_rows`, has them computed in the batcher's
  one worker thread, and settles their futures. Meanwhile the queue fills: the next batch is whoever waited during
  this one. An idle server computes a lone call immediately; nobody ever waits for company.
* A call's rows stay together, in order, and calls are taken in the order they came: none overtakes another.
* A caller that gives up while it waits leaves the queue at once. One whose deadline has passed is refused when its
  turn comes. Neither is computed. Rows already being computed are finished, and thrown away if nobody wants them.
* If the computation of a batch raises, its calls fail with a text of ours, and the next batch goes on as usual.
* `drain` refuses new calls, answers every admitted one, and ends the task and the thread. If that takes too long,
  what is left is failed rather than forgotten: every admitted call is settled exactly once.
"""

import asyncio
import dataclasses
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from serving.engine import ActFunction
from serving.errors import ComputationError, DeadlinePassedError, OverloadedError, ServingError, UnavailableError
from serving.metrics import PolicyMetrics

_LOGGER = logging.getLogger(__name__)


class Answer(NamedTuple):
    """The actions of one call, and how they came about."""

    action: np.ndarray  # [rows, action_dim] float32, finite
    queue_s: float  # from admission to the start of the computation
    compute_s: float  # of the whole batch
    batch_rows: int  # rows computed together, padding excluded


@dataclasses.dataclass(eq=False)
class _Call:
    """One admitted call; compared by identity."""

    rows: np.ndarray
    admitted_s: float
    deadline_s: float  # on the batcher's clock; infinite if the caller waits for ever
    answer: asyncio.Future[Answer]


class _Computed(NamedTuple):
    action: np.ndarray | None  # [rows, action_dim]; None: the engine failed
    finite: np.ndarray  # [rows], whether every value of a row's action is
    started_s: float
    compute_s: float


class Batcher:
    """Turns concurrent calls into batches. Construct it inside a running event loop.

    Args:
        engine: computes a batch; only ever called from the batcher's own thread.
        max_queue_rows: most rows that may wait, at least `engine.max_rows`.
        metrics: receives what happened.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        engine: ActFunction,
        *,
        max_queue_rows: int,
        metrics: PolicyMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._max_queue_rows = max_queue_rows
        self._metrics = metrics
        self._clock = clock
        self._queue: OrderedDict[_Call, None] = OrderedDict()  # a queue that calls can leave from the middle
        self._queue_rows = 0
        self._in_flight: list[_Call] = []
        self._arrival = asyncio.Event()
        self._draining = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compute")
        self._task = asyncio.create_task(self._run())

    @property
    def queue_rows(self) -> int:
        """Rows waiting for computation."""
        return self._queue_rows

    async def submit(self, rows: np.ndarray, *, timeout_s: float | None = None) -> Answer:
        """Compute the actions for `rows: [rows, state_dim + goal_dim]`, 1 to `engine.max_rows` of them.

        Args:
            timeout_s: seconds until the caller has no use for the answer; None: no limit.

        Raises:
            UnavailableError: the batcher is draining.
            DeadlinePassedError: the time was over before the rows were computed.
            OverloadedError: the queue is full.
            ComputationError: the computation failed or gave an action that is not finite.
        """
        assert 0 < len(rows) <= self._engine.max_rows
        if self._draining:
            raise UnavailableError("the server is shutting down; connect to another, or again in a moment")
        if timeout_s is not None and timeout_s <= 0:
            raise DeadlinePassedError("the deadline had passed when the request arrived; allow more time")
        if self._queue_rows + len(rows) > self._max_queue_rows:
            raise OverloadedError(
                f"{self._queue_rows} of {self._max_queue_rows} rows are waiting already; send the next observation"
                " rather than this one again, and less often"
            )
        call = self._admit(rows, timeout_s=timeout_s)
        try:
            return await call.answer
        finally:
            self._leave_queue(call)  # it is still there only if the caller gave up

    async def drain(self, *, grace_s: float) -> bool:
        """Answer every admitted call and stop; after `grace_s` fail what is left. Returns whether none was left."""
        self._draining = True
        self._arrival.set()
        _, unfinished = await asyncio.wait({self._task}, timeout=grace_s)
        if unfinished:
            self._task.cancel()
            await asyncio.wait({self._task})
        self._thread.shutdown(wait=not unfinished, cancel_futures=True)
        return not unfinished

    def _admit(self, rows: np.ndarray, *, timeout_s: float | None) -> _Call:
        now_s = self._clock()
        deadline_s = math.inf if timeout_s is None else now_s + timeout_s
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        call = _Call(rows, admitted_s=now_s, deadline_s=deadline_s, answer=answer)
        self._queue[call] = None
        self._count_queue(len(rows))
        self._arrival.set()
        return call

    def _leave_queue(self, call: _Call) -> None:
        if call in self._queue:
            del self._queue[call]
            self._count_queue(-len(call.rows))

    def _count_queue(self, change: int) -> None:
        self._queue_rows += change
        self._metrics.queue_rows.set(self._queue_rows)

    async def _run(self) -> None:
        try:
            while await self._wait_for_calls():
                self._in_flight = self._take_batch()
                if self._in_flight:
                    await self._compute(self._in_flight)
        finally:
            # Reached with calls left only when the grace is over, or by a mistake of ours; nobody must wait for ever.
            self._draining = True
            for call in (*self._in_flight, *self._queue):
                _fail(call, UnavailableError("the server shut down before this call was computed"))

    async def _wait_for_calls(self) -> bool:
        """Wait until the queue holds a call; False once it never will again."""
        while not self._queue:
            if self._draining:
                return False
            self._arrival.clear()
            await self._arrival.wait()
        return True

    def _take_batch(self) -> list[_Call]:
        """Take calls from the front of the queue while they fit; drop those that nobody waits for any more."""
        now_s = self._clock()
        batch: list[_Call] = []
        room = self._engine.max_rows
        while self._queue:
            call = next(iter(self._queue))
            wanted = not call.answer.done() and call.deadline_s > now_s
            if wanted and len(call.rows) > room:
                break
            self._leave_queue(call)
            if wanted:
                batch.append(call)
                room -= len(call.rows)
            else:
                _fail(call, DeadlinePassedError("the deadline passed while the request waited; allow more time"))
        return batch

    async def _compute(self, batch: list[_Call]) -> None:
        """Compute `batch` in the worker thread and settle its calls."""
        loop = asyncio.get_running_loop()
        computed = await loop.run_in_executor(self._thread, self._call_engine, [call.rows for call in batch])
        for call in batch:
            self._metrics.observe_wait(computed.started_s - call.admitted_s)
        if computed.action is None:
            self._metrics.failed_batches.inc()
            for call in batch:
                _fail(call, ComputationError("the policy could not be computed; send the next observation"))
            return
        rows = len(computed.action)
        self._metrics.observe_batch(rows, padding=self._engine.padding(rows), compute_s=computed.compute_s)
        self._answer(batch, computed.action, computed=computed)

    def _call_engine(self, blocks: list[np.ndarray]) -> _Computed:
        """Run the engine; this alone happens in the worker thread."""
        started_s = self._clock()
        action, finite = None, np.empty(0, bool)
        try:
            rows = np.concatenate(blocks)
            action = self._engine.act(rows)
            finite = np.asarray(np.isfinite(action).all(axis=1))
            if len(action) != len(rows):
                raise ValueError(f"the engine gave {len(action)} actions for {len(rows)} rows")
        except BaseException:  # a foreign CancelledError would otherwise end our task as if we had been cancelled
            _LOGGER.exception("a batch of %d calls failed", len(blocks))
            action = None
        return _Computed(action, finite, started_s=started_s, compute_s=self._clock() - started_s)

    def _answer(self, batch: list[_Call], action: np.ndarray, *, computed: _Computed) -> None:
        """Give each call its own rows of `action`, unless one of them is not finite."""
        start = 0
        for call in batch:
            own = slice(start, start + len(call.rows))
            start = own.stop
            if not computed.finite[own].all():
                self._metrics.non_finite.inc()
                _fail(call, ComputationError("the policy gave NaN or infinity for this input; bring the robot to rest"))
            elif not call.answer.done():
                queue_s = computed.started_s - call.admitted_s
                call.answer.set_result(Answer(action[own], queue_s, computed.compute_s, batch_rows=len(action)))


def _fail(call: _Call, error: ServingError) -> None:
    """Settle `call` with `error`, unless its caller is gone or it is settled."""
    if not call.answer.done():
        call.answer.set_exception(error)
