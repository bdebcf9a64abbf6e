"""Pace: how busy a server has been lately, and so how long a batch that is not full may wait for company.

Two things can be busy: the computation, and the event loop, which receives and sends. A batch costs either of them much
the same whatever its size, so fuller batches free time; but while both are idle half of the time nobody waits: company
would come too late to save anything. From there to nine tenths of the time the wait grows in proportion to its maximum.
The time that fuller batches free shortens the wait again, so it settles where it pays.
"""

import math
import time
from collections.abc import Callable

_MEMORY_S = 0.1  # for which what happened counts, in the sense of an exponential mean
_WINDOW_S = 0.02  # over which the event loop's share is taken
_IDLE_SHARE = 0.5  # below, nobody waits
_FULL_SHARE = 0.9  # from here on, batches wait as long as they may


class Pace:
    """The share of time in which batches were under way, forgotten exponentially, and the event loop's of late.

    Args:
        max_batch_delay_s: longest wait for company; 0: never.
        loop_cpu_s: processor time that the event loop's thread has taken, in seconds.
    """

    def __init__(self, max_batch_delay_s: float, *, loop_cpu_s: Callable[[], float] = time.thread_time) -> None:
        self._max_batch_delay_s = max_batch_delay_s
        self._loop_cpu_s = loop_cpu_s
        self._busy_share = 0.0
        self._updated_s = -math.inf
        self._loop_share = 0.0
        self._window: tuple[float, float] | None = None  # when it began, and the processor time then

    def batch_was_under_way(self, started_s: float, ended_s: float) -> None:
        """A batch occupied the computation from `started_s` to `ended_s`, the latest end so far."""
        self._forget(started_s, busy=False)
        self._forget(ended_s, busy=True)

    def busy_share(self, now_s: float, *, is_busy: bool = False) -> float:
        """The share of the last tenth of a second or so in which batches were under way, 0 to 1.

        Args:
            is_busy: whether one has been since the last of them ended, and still is.
        """
        self._forget(now_s, busy=is_busy)
        return self._busy_share

    def loop_share(self, now_s: float) -> float:
        """The share of the last window that the event loop's thread computed, 0 to 1; to be asked on that thread."""
        if self._window is None:
            self._window = now_s, self._loop_cpu_s()
        began_s, cpu_s = self._window
        if now_s - began_s >= _WINDOW_S:
            self._window = now_s, self._loop_cpu_s()
            self._loop_share = (self._window[1] - cpu_s) / (now_s - began_s)
        return self._loop_share

    def wait_s(self, now_s: float, *, slack_s: float, is_busy: bool = False) -> float:
        """How long a batch that could start at `now_s` waits for company.

        Args:
            slack_s: time that its first call can spare before its deadline.
            is_busy: whether another batch is under way.
        """
        busy_share = max(self.busy_share(now_s, is_busy=is_busy), self.loop_share(now_s))
        share = (busy_share - _IDLE_SHARE) / (_FULL_SHARE - _IDLE_SHARE)
        return max(0.0, min(self._max_batch_delay_s * min(1.0, share), slack_s))

    def _forget(self, now_s: float, *, busy: bool) -> None:
        if now_s > self._updated_s:
            kept = math.exp((self._updated_s - now_s) / _MEMORY_S)
            self._busy_share = kept * self._busy_share + (1 - kept) * busy
            self._updated_s = now_s
