"""Give the event loop's thread priority over the threads that compute.

Otherwise, under overload, requests would not be read before their deadlines pass. On Linux each thread has its own
niceness, and the threads that it starts inherit it. On other systems these functions change no priority.
"""

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import TypeVar

_NICER = 2  # 0.39 of a core for which it competes with the event loop; 5 would lose too much to other programs
LOWEST = 19
"""The niceness of threads whose work no request waits for."""
_TURN_S = 0.0005  # with Python's 5 ms, the event loop waits several times 5 ms for one request

BACKGROUND = "background"
"""The name of the threads of `run_in_background` and `run_in_thread`."""
Result = TypeVar("Result")


def lower_priority() -> None:
    """Lower the calling thread's priority below the main thread's. Idempotent."""
    if sys.platform == "linux":
        own, main = threading.get_native_id(), os.getpid()
        nicer = min(LOWEST, os.getpriority(os.PRIO_PROCESS, main) + _NICER)
        os.setpriority(os.PRIO_PROCESS, own, max(nicer, os.getpriority(os.PRIO_PROCESS, own)))


async def run_in_background(function: Callable[..., Result], *arguments: object) -> Result:
    """Return what `function` returns in a thread of the lowest priority, for work that no request waits for.

    The end of the process does not wait for the thread.
    """

    def run() -> Result:
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST)
        return function(*arguments)

    return await run_in_thread(run)


async def run_in_thread(function: Callable[..., Result], *arguments: object) -> Result:
    """Return what `function` returns in another thread. The end of the process does not wait for the thread."""
    outcome: Future[Result] = Future()
    outcome.set_running_or_notify_cancel()  # so that the thread can set it, also after the caller was cancelled

    def run() -> None:
        try:
            outcome.set_result(function(*arguments))
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name=BACKGROUND, daemon=True).start()
    return await asyncio.wrap_future(outcome)


@contextlib.contextmanager
def short_turns() -> Generator[None]:
    """Let Python's threads take turns ten times as often while a thread in the background runs Python for long."""
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(_TURN_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before_s)


def start_at_lower_priority(start: Callable[[], object]) -> None:
    """Call `start`, so that the threads that it starts have a lower priority and the calling thread does not."""

    def run() -> None:
        lower_priority()
        start()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
