"""Pace: how busy a batcher has been lately, and so how long a batch that is not full may wait for company.

While the computation is idle half of the time nobody waits: company would come too late to save anything. From there
to nine tenths of the time the wait grows in proportion to its maximum. Computing batches that are fuller frees time,
which shortens the wait again, so it settles where it pays.
"""

import math

_MEMORY_S = 0.1  # for which what happened counts, in the sense of an exponential mean
_IDLE_SHARE = 0.5  # below, nobody waits
_FULL_SHARE = 0.9  # from here on, batches wait as long as they may


class Pace:
    """The share of time in which batches were under way, forgotten exponentially.

    Args:
        max_wait_s: longest wait for company; 0: never.
    """

    def __init__(self, max_wait_s: float) -> None:
        self._max_wait_s = max_wait_s
        self._busy_share = 0.0
        self._updated_s = -math.inf

    def batch_was_under_way(self, started_s: float, ended_s: float) -> None:
        """A batch occupied the computation from `started_s` to `ended_s`, later than all before it."""
        self._forget(started_s, busy=False)
        self._forget(ended_s, busy=True)

    def busy_share(self, now_s: float) -> float:
        """The share of the last tenth of a second or so in which batches were under way, 0 to 1."""
        self._forget(now_s, busy=False)
        return self._busy_share

    def wait_s(self, now_s: float, *, slack_s: float) -> float:
        """How long a batch that could start at `now_s` waits for company.

        Args:
            slack_s: time that its first call can spare before its deadline.
        """
        share = (self.busy_share(now_s) - _IDLE_SHARE) / (_FULL_SHARE - _IDLE_SHARE)
        return max(0.0, min(self._max_wait_s * min(1.0, share), slack_s))

    def _forget(self, now_s: float, *, busy: bool) -> None:
        if now_s > self._updated_s:
            kept = math.exp((self._updated_s - now_s) / _MEMORY_S)
            self._busy_share = kept * self._busy_share + (1 - kept) * busy
            self._updated_s = now_s
