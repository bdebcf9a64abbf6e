"""End a run on signals: after the current slice of gradient steps, or immediately on a second Ctrl-C.

Python runs a signal's handler in the main thread, between two instructions. A compiled program is one instruction that
may take seconds, so signals are noticed by a thread, which reads their numbers from a pipe. It prints that the first
one was received, and ends the process at a second Ctrl-C. The handler itself prints nothing: it may have interrupted
the main thread while that holds a lock of the output.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Generator


@contextlib.contextmanager
def stop_requested() -> Generator[threading.Event]:
    """Set an event on SIGTERM and SIGINT; a second SIGINT raises KeyboardInterrupt. Only in the main thread."""
    handler = _Handler()
    if threading.current_thread() is not threading.main_thread():
        yield handler.stop
        return
    earlier = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield handler.stop
    finally:
        for number, before in earlier.items():
            signal.signal(number, before)


class _Handler:
    """The handler of a run's signals."""

    def __init__(self) -> None:
        self.stop = threading.Event()

    def __call__(self, number: int, _: object) -> None:
        if self.stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stop.set()


@contextlib.contextmanager
def watched(*, stopping: Callable[[], None], end: Callable[[], None]) -> Generator[None]:
    """Call two functions from a thread when signals arrive, whatever the main thread does. Only in the main thread.

    Args:
        stopping: called at the first SIGTERM or SIGINT within `stop_requested`.
        end: called when SIGINT follows an earlier SIGTERM or SIGINT.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    earlier = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(reading, stopping, end), name="signals", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(earlier)
        os.close(writing)  # ends the watcher
        watcher.join()
        os.close(reading)


def _watch(reading: int, stopping: Callable[[], None], end: Callable[[], None]) -> None:
    asked = False
    while received := os.read(reading, 1):
        number = received[0]
        if asked and number == signal.SIGINT:
            end()
        elif not asked and number in {signal.SIGINT, signal.SIGTERM}:
            asked = True
            if isinstance(signal.getsignal(number), _Handler):  # elsewhere the signal ends the process
                stopping()
