"""Admission: whether a call may join the waiting line of a policy, going by what is before it and how long that takes.

The rule can be asked before anything of a call but its deadline is known: if not even one row of the usual priority
would be let in, nothing is gained by reading which rows they are.
"""

import dataclasses
import math
from typing import NamedTuple

from serving.batching.in_flight import InFlightBatches
from serving.batching.queue import RequestQueue
from serving.engine.engine import BatchEngine, Kind
from serving.errors import OverloadedError

_MARGIN = 1.25  # on what a call is expected to take: in a crowd, computations take now longer, now less long
_CROWD_MEMORY_S = 1.0  # for which one call that is shed tells that there may be more
_URGENT_MEMORY_S = 60.0  # for which one call of a higher priority tells that there may be more


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What a batcher keeps to."""

    queue_rows: int  # most rows that may wait
    queue_age_s: float = math.inf  # nobody joins while a call has waited longer than this
    wait_s: float = 0.0  # longest wait of a batch for company


class Rejection(NamedTuple):
    """Why a call is not let in."""

    reason: str  # one of metrics.REJECTION_REASONS
    problem: str

    def error(self) -> OverloadedError:
        """What its caller is told."""
        return OverloadedError(f"{self.problem}; send the next observation rather than this one again, and less often")


class Admission:
    """Judges calls for one waiting line. It has no clock: whoever asks says what time it is.

    Args:
        line: the calls that wait.
        max_concurrency: the batches under way.
        engine: tells how long a batch takes.
        limits: of the line.
    """

    def __init__(
        self, line: RequestQueue, max_concurrency: InFlightBatches, engine: BatchEngine, limits: Limits
    ) -> None:
        self._line = line
        self._lanes = max_concurrency
        self._engine = engine
        self._limits = limits
        self._shed_s = -math.inf  # when a call was shed last
        self._urgent_s = -math.inf  # when a call of a higher priority came last

    def crowded(self, now_s: float) -> bool:
        """Whether a call was shed of late, so that it is worth judging others unread."""
        return now_s - self._shed_s < _CROWD_MEMORY_S

    def judge(self, rows: int, *, kind: Kind, priority: int, now_s: float, deadline_s: float) -> Rejection | None:
        """Why a call of `rows` is shed: the line has no room for it, or would not get to it in time. None: it is not.

        Args:
            deadline_s: on the clock of `now_s`; infinite if there is none.
        """
        if priority:
            self._urgent_s = now_s
        shed = self._judge(rows, kind, priority=priority, now_s=now_s, deadline_s=deadline_s)
        if shed:
            self._shed_s = now_s
        return shed

    def judge_unread(self, kind: Kind, *, now_s: float, deadline_s: float) -> Rejection | None:
        """Why a call is shed whatever it asks for; None: it may be let in, or may be one of a higher priority."""
        if now_s - self._urgent_s < _URGENT_MEMORY_S:
            return None
        return self.judge(1, kind=kind, priority=0, now_s=now_s, deadline_s=deadline_s)

    def _judge(self, rows: int, kind: Kind, *, priority: int, now_s: float, deadline_s: float) -> Rejection | None:
        limits = self._limits
        if self._line.rows + rows > limits.queue_rows:
            return Rejection("queue_full", f"{self._line.rows} of {limits.queue_rows} rows are waiting already")
        if (age_s := self._line.age_s(now_s)) > limits.queue_age_s:
            return Rejection("queue_age", f"calls have waited for {age_s:.3f} s")
        if deadline_s == math.inf or not (self._line or self._lanes):
            return None
        left_s, takes_s = deadline_s - now_s, _MARGIN * self._takes_s(rows, kind, priority=priority, now_s=now_s)
        if takes_s > left_s:
            problem = f"the answer would take up to {takes_s:.4f} s, and {left_s:.4f} s are left"
            return Rejection("deadline_too_short", problem)
        return None

    def _takes_s(self, rows: int, kind: Kind, *, priority: int, now_s: float) -> float:
        """Seconds until a call that joined now would be computed, going by how long batches take."""
        most = self._engine.max_rows
        if (together := self._line.rows + rows) <= most and self._lanes.free(now_s) > 0:
            return self._engine.expected_s(kind, together)  # it can begin at once, and does if it must
        before_s, own_s = self._lanes.left_s(now_s), 0.0
        for before, waiting in self._line.rows_before(priority).items():
            total = waiting + rows if before is kind else waiting
            if not total:
                continue
            full = (total - 1) // most  # batches before the last
            if full:
                before_s += full * self._engine.expected_s(before, most)
            # Whoever comes after the call shares its batch: in a crowd, as many as share one under way.
            last_s = self._engine.expected_s(before, max(total - full * most, self._lanes.company(before)))
            if before is kind:
                own_s = last_s
            else:
                before_s += last_s
        # No lane is idle while enough waits, so the last batch begins once each has done its share of those before it.
        return before_s / self._lanes.number(now_s) + own_s
