"""Overload: decides which calls the batcher of one policy checks before they are read.

Under overload most calls are rejected, and reading and parsing are about a quarter of the cost of a rejection. The
content of a call is unknown before it is read. It counts as one row of ACT, which takes the least time, with the
highest priority that an earlier request had. If even such a request is rejected, the call is rejected unread.
"""

import math

from serving.batching.queue import PRIORITIES
from serving.batching.scheduler import Arrival, BatchingPolicy


class Overload:
    """Remembers rejections and priorities for a short time. It has no clock; the caller passes the time.

    Args:
        policy: how long they are remembered, and how many calls are read in any case.
    """

    def __init__(self, policy: BatchingPolicy) -> None:
        self._policy = policy
        self._rejected_s = -math.inf  # time of the last rejection
        self._seen_s = [-math.inf] * PRIORITIES  # time of the last request of each priority
        self._checked = 0

    def record_rejection(self, now_s: float) -> None:
        """Remember that a request or an unread call was rejected."""
        self._rejected_s = now_s

    def record_priority(self, priority: int, now_s: float) -> None:
        """Remember that a request of this priority arrived. Priority 0 need not be recorded."""
        self._seen_s[priority] = now_s

    def is_present(self, now_s: float) -> bool:
        """Return whether a rejection is so recent that calls are checked before they are read."""
        return now_s - self._rejected_s < self._policy.overload_memory_s

    def least_arrival(self, now_s: float, deadline_s: float, connection: str = "") -> Arrival | None:
        """Return the smallest request that a call of unknown content can be; None: read it in any case."""
        self._checked += 1
        if self._checked % self._policy.read_every == 0:
            return None
        priority = PRIORITIES - 1
        while priority and now_s - self._seen_s[priority] >= self._policy.priority_memory_s:
            priority -= 1
        return Arrival(now_s, deadline_s, priority=priority, connection=connection)
