"""Forks: which process a connection was opened in, and whether gRPC works in a forked one.

gRPC keeps threads, sockets and an epoll set of its own. A fork copies the memory and shares the sockets, and the
threads exist in the parent alone. If the child used a channel of the parent, both would read from one socket, and each
could get the other's replies. So the child opens channels of its own, with an option that differs from those of the
parent: gRPC shares a socket between channels with equal options. Nothing in the child closes what belongs to the
parent.

gRPC prepares its own state for a fork. It cannot if `GRPC_ENABLE_FORK_SUPPORT` is false. Versions before 1.81 also
cannot while another thread is in gRPC, as those of an open stream are; a child that then uses gRPC crashes its parent
(measured with 1.59 to 1.78; 11 of 40 children crashed with 1.80, none with 1.81). With `GRPC_ENABLE_FORK_SUPPORT=1`
they wait for such threads. The poller of grpc.aio does not survive a fork in any version. Before 1.81 it crashes the
parent if the child uses gRPC.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import grpc

_LOGGER = logging.getLogger("kilolayer")
_GRPC_FOLDER = str(Path(grpc.__file__).parent) + os.sep
FIRST_ROBUST_VERSION = (1, 81)
_TRUE = ("1", "true", "yes")
_FALSE = ("0", "f", "false", "n", "no")  # as gRPC reads it
_ADVICE = "make the client after the fork, or start processes with multiprocessing's method spawn"


class Forks:
    """What this process knows about the forks that it comes from.

    Args:
        setting: the value of `GRPC_ENABLE_FORK_SUPPORT`, or None.
        version: of grpcio.
    """

    def __init__(self, *, setting: str | None, version: str) -> None:
        self.generation: int = 0
        """Number of forks between the first process and this one."""
        self.lock: Any = threading.RLock()
        """Held while a connection is opened or closed. New after a fork, as a thread of the parent may hold it."""
        self._setting = (setting or "").lower()
        self._is_robust = _numbers(version) >= FIRST_ROBUST_VERSION
        self._is_used = self._has_polled = False  # gRPC; grpc.aio
        self._async_channels: weakref.WeakSet[Any] = weakref.WeakSet()
        self._is_busy = self._is_polling = False  # at the last fork
        self._problem = self._async_problem = ""
        self._abandoned: list[Any] = []
        self._is_said = False

    def before(self) -> None:
        """Note what the parent does with gRPC. Runs in the thread that forks."""
        self._is_busy = self._is_used and not self._is_robust and is_any_in_grpc()
        self._is_polling = bool(len(self._async_channels))

    def after_in_child(self) -> None:
        """Begin another generation."""
        self.generation += 1
        self.lock = threading.RLock()
        self._is_said = False
        if self._is_used:
            self._problem = self._problem or self._find_problem()
        if self._is_polling:
            self._async_problem = "a channel of an AsyncPolicyClient existed when this process was forked"

    def use(self, channel: Any = None) -> None:
        """Note that gRPC is used from now on, and by which channel of `grpc.aio`. It counts until it is collected."""
        self._is_used = True
        if channel is not None:
            self._has_polled = True
            self._async_channels.add(channel)

    def require_usable(self, *, with_asyncio: bool = False) -> None:
        """Raise RuntimeError if gRPC does not work in this process."""
        problem = self._problem or (self._async_problem if with_asyncio else "")
        if problem:
            raise RuntimeError(f"gRPC cannot be used in this process: {problem}; {_ADVICE}")

    def abandon(self, *belongings: Any) -> None:
        """Keep what belongs to the parent: collecting it here could close the parent's sockets."""
        self._abandoned.append(belongings)

    def say(self, address: str) -> None:
        """Log that a client opens a new connection, once in each process."""
        if not self._is_said:
            self._is_said = True
            _LOGGER.warning(
                "a client of %s was used before this process was forked; it opens a new connection here (process %d)",
                address,
                os.getpid(),
            )

    def _find_problem(self) -> str:
        if self._setting in _FALSE:
            return f"GRPC_ENABLE_FORK_SUPPORT is {self._setting}, and gRPC was in use when this process was forked"
        old = f"grpcio before {'.'.join(map(str, FIRST_ROBUST_VERSION))} does not survive that"
        if self._has_polled and not self._is_robust:
            return f"an AsyncPolicyClient was used before this process was forked, and {old}"
        if self._is_busy and self._setting not in _TRUE:
            return (
                f"a stream was open, or a call was pending, when this process was forked, and {old} without"
                " GRPC_ENABLE_FORK_SUPPORT=1"
            )
        return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def is_any_in_grpc() -> bool:
    """Return whether another thread than this one is in a function of gRPC."""
    return any(is_in_grpc(thread) for thread in _frames() if thread != threading.get_ident())


def is_in_grpc(thread: int) -> bool:
    """Return whether the thread of this identifier is in a function of gRPC."""
    frame = _frames().get(thread)
    while frame is not None:
        if frame.f_code.co_filename.startswith(_GRPC_FOLDER):
            return True
        frame = frame.f_back
    return False


def _frames() -> dict[int, Any]:
    """Return the innermost frame of each thread, by its identifier."""
    return sys._current_frames()  # pyright: ignore[reportPrivateUsage]


forks = Forks(setting=os.environ.get("GRPC_ENABLE_FORK_SUPPORT"), version=grpc.__version__)
if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(before=forks.before, after_in_child=forks.after_in_child)
