"""The threads in which XLA compiles for a CPU: they get the lowest priority once a server answers requests.

XLA starts some of them with the device, which does not need them to compute, and the others at the first compilation.
It keeps them, with the priority of the thread that started them, so that a later compilation in a thread of lower
priority would still delay requests. Only on Linux does each thread have its own priority.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Generator
from pathlib import Path

from serving.engine.thread_priority import LOWEST

_TASKS = Path("/proc/self/task")
_threads: set[int] = set()  # native ids


@contextlib.contextmanager
def remembered() -> Generator[None]:
    """Remember the threads that XLA starts meanwhile."""
    before = _unnamed_threads()
    yield
    _threads.update(_unnamed_threads() - before)


def set_lowest_priority() -> None:
    """Give the remembered threads the lowest priority, for good: without privileges it cannot be raised again."""
    for thread in _threads & _unnamed_threads():
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.setpriority(os.PRIO_PROCESS, thread, LOWEST)


def _unnamed_threads() -> set[int]:
    """Return the native ids of the threads that neither Python nor gRPC has started. gRPC names its threads."""
    if sys.platform != "linux":
        return set()
    inherited = (_TASKS / str(os.getpid()) / "comm").read_text()
    of_python = {thread.native_id for thread in threading.enumerate()}
    found = set[int]()
    for task in _TASKS.iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended since it was listed
            if int(task.name) not in of_python and (task / "comm").read_text() == inherited:
                found.add(int(task.name))
    return found
