"""Niceness: threads that compute give way to the event loop, which must receive, answer and refuse in any case.

Under more load than a machine can bear, calls would otherwise lie unread until their deadlines had passed. On Linux
each thread has a niceness of its own, and hands it down to those that it starts; elsewhere nothing is done.
"""

import os
import sys
import threading
from collections.abc import Callable

_NICER = 5  # the kernel gives such a thread a third of the time of an ordinary one, if both want all of it
_NICEST = 19


def lower_priority() -> None:
    """From now on the calling thread gives way to the main one; to do so again, or by inheritance, changes nothing."""
    if sys.platform == "linux":
        own, main = threading.get_native_id(), os.getpid()
        nicer = min(_NICEST, os.getpriority(os.PRIO_PROCESS, main) + _NICER)
        os.setpriority(os.PRIO_PROCESS, own, max(nicer, os.getpriority(os.PRIO_PROCESS, own)))


def start_at_lower_priority(start: Callable[[], object]) -> None:
    """Call `start`, which starts threads, so that they give way and the calling thread does not."""

    def run() -> None:
        lower_priority()
        start()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
