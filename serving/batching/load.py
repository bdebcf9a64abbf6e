"""How busy the server is: the share of time in which it computes batches, and the share in which its event loop works.

`LoadMeter` measures both. `Load` is one measurement; the scheduler uses it.
"""

import math
import time
from collections.abc import Callable
from typing import NamedTuple


class Load(NamedTuple):
    """Two shares of recent time, each from 0 to 1."""

    compute: float = 0.0
    """Share of time in which at least one batch was in flight."""

    event_loop: float = 0.0
    """Share of one core that the event loop's thread used."""


class LoadMeter:
    """Measures the load. It has no clock; the caller passes the time, in monotonic seconds.

    Args:
        memory_s: time constant of the exponential mean of the compute share.
        window_s: interval over which the event loop's share is taken.
        loop_cpu_s: processor time used so far by the thread that calls `read`, in seconds.
    """

    def __init__(self, *, memory_s: float, window_s: float, loop_cpu_s: Callable[[], float] = time.thread_time) -> None:
        self._memory_s = memory_s
        self._window_s = window_s
        self._loop_cpu_s = loop_cpu_s
        self._compute_share = 0.0
        self._updated_s = -math.inf
        self._loop_share = 0.0
        self._window: tuple[float, float] | None = None  # its start, and the processor time used until then

    def record_batch(self, dispatched_s: float, ended_s: float) -> None:
        """Count a batch that was in flight from `dispatched_s` to `ended_s`, the latest end so far."""
        self._advance(dispatched_s, busy=False)
        self._advance(ended_s, busy=True)

    def read(self, now_s: float, *, is_computing: bool) -> Load:
        """Return the load. Call it on the event loop's thread.

        Args:
            is_computing: whether a batch has been in flight since the last call, and still is.
        """
        self._advance(now_s, busy=is_computing)
        return Load(self._compute_share, self.event_loop(now_s))

    def event_loop(self, now_s: float) -> float:
        """Return only the event loop's share. Call it on the event loop's thread."""
        if self._window is None:
            self._window = now_s, self._loop_cpu_s()
        started_s, cpu_s = self._window
        if now_s - started_s >= self._window_s:
            self._window = now_s, self._loop_cpu_s()
            self._loop_share = (self._window[1] - cpu_s) / (now_s - started_s)
        return self._loop_share

    def _advance(self, now_s: float, *, busy: bool) -> None:
        if now_s > self._updated_s:
            kept = math.exp((self._updated_s - now_s) / self._memory_s)
            self._compute_share = kept * self._compute_share + (1 - kept) * busy
            self._updated_s = now_s
