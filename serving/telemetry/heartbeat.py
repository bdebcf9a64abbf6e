"""Heartbeat: notices from another thread that an event loop does not run any more."""

from collections.abc import Callable

BEAT_S = 1.0  # between two beats
SILENT_S = 5.0  # without a beat; a loop that is only busy is never that late


class Heartbeat:
    """When an event loop ran last.

    Args:
        clock: monotonic seconds.
        whose: what does not respond without a beat, for `problem`.
    """

    def __init__(self, *, clock: Callable[[], float], whose: str = "the event loop") -> None:
        self._clock = clock
        self._whose = whose
        self._beat_s = clock()

    def beat(self) -> None:
        """Record that the loop runs. Call it every `BEAT_S`."""
        self._beat_s = self._clock()

    def problem(self) -> str:
        """Return that the loop has been silent for more than `SILENT_S`, in words; empty if it has not."""
        silent_s = self._clock() - self._beat_s
        return f"{self._whose} has not responded for {silent_s:.0f} s" if silent_s > SILENT_S else ""
