"""Closes clients and streams that were dropped without `close`, in a thread of its own.

The collector runs a finalizer in any thread and at any moment: also in a thread that is just starting, while another
waits for it and holds a lock. So a finalizer takes no lock and waits for nothing. It warns, and notes what to close.
"""

from __future__ import annotations

import atexit
import logging
import queue
import threading
import warnings
import weakref
from typing import Callable, Protocol

from kilolayer._forks import forks

_LOGGER = logging.getLogger("kilolayer")
THREAD = "kilolayer-reaper"
_EXIT_S = 5.0  # for the connections that were dropped to close, when the program ends


class Droppable(Protocol):
    """The connection of a client or a stream. It does not refer to its owner. Only `drop` may take locks."""

    @property
    def is_open(self) -> bool:
        """Whether it is open in this process."""
        ...

    def leave(self) -> bool:
        """Let go of what belongs to the parent of this process. Return whether there was something."""
        ...

    def drop(self) -> None:
        """Close it."""
        ...


class Reaper:
    """The thread of this process that closes what was dropped. A forked process has one of its own."""

    def __init__(self) -> None:
        self._noted: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()  # a put may interrupt another
        self._generation = -1  # of the process that has the thread, see `Forks.generation`
        self._is_exiting = False

    def start(self) -> None:
        """Start the thread, unless this process has it. `forks.lock` is held."""
        if self._generation != forks.generation:
            threading.Thread(target=self._run, name=THREAD, daemon=True).start()
            self._generation = forks.generation

    def watch(self, owner: object, connection: Droppable, *, name: str) -> None:
        """Close `connection` when `owner` is collected, or the program ends. A ResourceWarning says if it was open."""
        weakref.finalize(owner, self._finalize, connection, name)

    def finish(self) -> None:
        """Close what was noted, because the program ends. What is dropped from now on is closed by its finalizer."""
        self._is_exiting = True
        if self._generation == forks.generation:
            finished = threading.Event()
            self._noted.put(finished.set)
            finished.wait(_EXIT_S)

    def _finalize(self, connection: Droppable, name: str) -> None:
        if connection.leave() or not connection.is_open:
            return
        warnings.warn(f"{name} was not closed; call close(), or use a with statement", ResourceWarning, stacklevel=2)
        if self._is_exiting:
            connection.drop()
        else:
            self._noted.put(connection.drop)

    def _run(self) -> None:
        while True:
            close = self._noted.get()
            try:
                close()
            except Exception:
                _LOGGER.exception("a connection that was dropped cannot be closed")
            del close  # it holds the connection


reaper = Reaper()
atexit.register(reaper.finish)
