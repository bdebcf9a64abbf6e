"""End a run on signals: after the current slice of gradient steps, or immediately on a second Ctrl-C.

Python runs a signal's handler in the main thread, between two instructions. A compiled program is one instruction that
may take seconds, so a second Ctrl-C is noticed by a thread, which reads the numbers of signals from a pipe.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Generator


@contextlib.contextmanager
def stop_requested() -> Generator[threading.Event]:
    """Set an event on SIGTERM and SIGINT; a second SIGINT raises KeyboardInterrupt. Only in the main thread."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, _: object) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    earlier = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def second_interrupt(end: Callable[[], None]) -> Generator[None]:
    """Call `end` from a thread when SIGINT follows an earlier SIGTERM or SIGINT. Only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    earlier = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(reading, end), name="second-interrupt", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(earlier)
        os.close(writing)  # ends the watcher
        watcher.join()
        os.close(reading)


def _watch(reading: int, end: Callable[[], None]) -> None:
    asked = False
    while number := os.read(reading, 1):
        if asked and number[0] == signal.SIGINT:
            end()
        asked = asked or number[0] in {signal.SIGINT, signal.SIGTERM}
