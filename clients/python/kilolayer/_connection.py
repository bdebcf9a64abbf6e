"""The connection of one client: a channel that the first call opens, and the first call after a fork opens anew.

It does not refer to its client, so that a client that is dropped without `close` can be collected. Its connection is
then closed, and a ResourceWarning says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import warnings
import weakref
from typing import Any, Callable

import grpc

from kilolayer._channel import Endpoint, stream_method, unary_methods
from kilolayer._forks import forks, is_in_grpc
from kilolayer._renewal import RenewedChannel


@dataclasses.dataclass(frozen=True)
class OpenChannel:
    """A channel, with the methods of the service on it."""

    channel: grpc.Channel | RenewedChannel
    methods: dict[str, Callable[..., Any]]  # of one request and one reply, by name
    act_stream: Callable[..., Any]
    generation: int  # of the process that opened it, see `Forks.generation`


class Connection:
    """The channel of a client, in the process that calls it.

    Args:
        endpoint: the server.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._open: OpenChannel | None = None

    def channel(self, method: str) -> OpenChannel:
        """Return the channel for a call of `method`. Opens it if there is none in this process.

        Raises:
            ClientClosed: the client was closed.
            RuntimeError: gRPC does not work in this process, which was forked.
        """
        current = self._open
        if current is not None and current.generation == forks.generation:
            return current
        with forks.lock:
            current = self._open
            if current is None or current.generation != forks.generation:
                self._endpoint.require_open(method)
                self._open = current = self._connect()
            return current

    def close(self) -> None:
        """Close the channel and its streams, unless they belong to another process."""
        with forks.lock:
            self._leave()
            self._endpoint.closed.set()
            if self._open is not None:
                self._open.channel.close()

    def drop(self) -> bool:
        """Close the channel, as its client is gone. Return whether it was open in this process."""
        with forks.lock:
            was_open = not self._leave() and self._open is not None and not self._endpoint.closed.is_set()
            if was_open:
                self.close()
            return was_open

    def _connect(self) -> OpenChannel:
        forks.require_usable()
        if self._leave():
            forks.say(self._endpoint.address)
        forks.use()
        channel = self._endpoint.open_channel()
        return OpenChannel(
            channel,
            unary_methods(channel, self._endpoint.metadata),
            stream_method(channel, self._endpoint.metadata),
            forks.generation,
        )

    def _leave(self) -> bool:
        """Let go of a channel that belongs to the parent of this process. Return whether there was one."""
        if self._open is None or self._open.generation == forks.generation:
            return False
        forks.abandon(self._open)
        self._open = None
        self._endpoint.renew()
        return True


def close_when_dropped(owner: object, drop: Callable[[], bool], *, name: str) -> None:
    """Call `drop` when `owner` is collected, or the program ends. A ResourceWarning says so if it returns True.

    `drop` must not refer to `owner`.
    """
    weakref.finalize(owner, _drop, drop, name)


def _drop(drop: Callable[[], bool], name: str) -> None:
    if is_in_grpc(threading.get_ident()):
        # The collector may run in any thread, also in one of gRPC's, which closing waits for.
        with contextlib.suppress(RuntimeError):  # the interpreter exits
            threading.Thread(target=_drop, args=(drop, name), name="kilolayer-drop", daemon=True).start()
    elif drop():
        warnings.warn(f"{name} was not closed; call close(), or use a with statement", ResourceWarning, stacklevel=2)
