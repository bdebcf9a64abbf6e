"""An event that stop signals set, and a way to run work until that event.

SIGTERM and SIGINT stop a server. So does SIGHUP in a process that was started in a terminal: the terminal is closed. In
a process without a terminal, a server that is ready polls the folders of its policies. A process that was started
with SIGHUP ignored, as by nohup, keeps ignoring it.
"""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable

from serving.engine.thread_priority import BACKGROUND

_LOGGER = logging.getLogger(__name__)


def on_stop_signals(
    set_handler: Callable[[signal.Signals, Callable[[], None]], object], stop: Callable[[], None]
) -> None:
    """Have `set_handler` call `stop` at SIGTERM and SIGINT, and at SIGHUP if the process has a terminal.

    Args:
        set_handler: sets what is called at a signal.
        stop: stops the process.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        set_handler(number, stop)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        set_handler(signal.SIGHUP, stop if _has_terminal() else _ignore_hangup)


def stop_event() -> asyncio.Event:
    """Return an event that is set when the process is to stop."""
    stop = asyncio.Event()
    on_stop_signals(asyncio.get_running_loop().add_signal_handler, stop.set)
    return stop


def on_hangup(handler: Callable[[], None]) -> None:
    """Call `handler` at SIGHUP, in a process without a terminal that was not started with SIGHUP ignored."""
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and not _has_terminal():
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, handler)


def _ignore_hangup() -> None:
    _LOGGER.info("SIGHUP has no effect on a server that starts; stop it with SIGTERM")


def _has_terminal() -> bool:
    """Return whether the process has a controlling terminal."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


async def finished_before(stop: asyncio.Event, work: Awaitable[object]) -> bool:
    """Run `work` and return True. If `stop` is set first, cancel the work and return False."""
    working, stopping = asyncio.ensure_future(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return True
        return False
    finally:
        working.cancel()
        stopping.cancel()


def exit_code(code: int) -> int:
    """Return `code`. If threads of `thread_priority` still work, end the process with it: the interpreter must not end.

    A native library that one of them is in could abort the process then.
    """
    if any(thread.name == BACKGROUND for thread in threading.enumerate()):
        logging.shutdown()
        os._exit(code)
    return code
