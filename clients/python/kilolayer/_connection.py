"""The connection of one client: a channel that the first call opens, and the first call after a fork opens anew.

It does not refer to its client, so that a client that is dropped without `close` can be collected.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Callable

import grpc

from kilolayer._channel import Endpoint, stream_method, unary_methods
from kilolayer._forks import forks
from kilolayer._reaper import reaper
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
        was_inherited = False
        with forks.lock:
            current = self._open
            if current is None or current.generation != forks.generation:
                self._endpoint.require_open(method)
                forks.require_usable()
                was_inherited = self.leave()
                self._open = current = self._connect()
        if was_inherited:
            forks.say(self._endpoint.address)
        return current

    @property
    def is_open(self) -> bool:
        """Whether the channel is open in this process. Takes no lock."""
        current = self._open
        return current is not None and current.generation == forks.generation and not self._endpoint.closed.is_set()

    def close(self) -> None:
        """Close the channel and its streams, unless they belong to another process."""
        with forks.lock:
            self.leave()
            self._endpoint.closed.set()
            current = self._open
        if current is not None:  # without the lock, which all clients share: gRPC waits until the calls have ended
            current.channel.close()

    drop = close

    def _connect(self) -> OpenChannel:
        forks.use()
        reaper.start()
        channel = self._endpoint.open_channel()
        return OpenChannel(
            channel,
            unary_methods(channel, self._endpoint.metadata),
            stream_method(channel, self._endpoint.metadata),
            forks.generation,
        )

    def leave(self) -> bool:
        """Let go of a channel that belongs to the parent of this process. Return whether there was one."""
        if self._open is None or self._open.generation == forks.generation:
            return False
        forks.abandon(self._open)
        self._open = None
        self._endpoint.renew()
        return True
