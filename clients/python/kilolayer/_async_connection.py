"""The connection of one AsyncPolicyClient: a channel of grpc.aio, which belongs to the event loop of the first call.

It does not refer to its client, so that a client that is dropped without `close` can be collected.
"""

from __future__ import annotations

import asyncio
from typing import Any, Callable

import grpc.aio

from kilolayer._channel import Endpoint, unary_methods
from kilolayer._forks import forks
from kilolayer._reaper import reaper
from kilolayer._renewal import RenewedAsyncChannel


class AsyncConnection:
    """The channel of a client, opened by its first call.

    Args:
        endpoint: the server.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._loop: asyncio.AbstractEventLoop | None = None
        self._channel: grpc.aio.Channel | RenewedAsyncChannel | None = None
        self._methods: dict[str, Callable[..., Any]] = {}
        self._generation = forks.generation

    def methods(self) -> dict[str, Callable[..., Any]]:
        """Return the methods of one request and one reply, by name. Opens the channel if this is the first call.

        Raises:
            RuntimeError: the first call was in another event loop or another process, or gRPC does not work in this
                process, which was forked.
        """
        if self._loop is None:
            forks.require_usable(with_asyncio=True)
            loop = asyncio.get_running_loop()
            channel = self._endpoint.open_async_channel()
            forks.use(channel)
            with forks.lock:
                reaper.start()
            self._methods = unary_methods(channel, self._endpoint.metadata)
            self._channel, self._loop, self._generation = channel, loop, forks.generation
        else:
            self._require_own_loop()
        return self._methods

    async def close(self) -> None:
        """Close the channel. RuntimeError in another event loop than its own, unless that loop is closed."""
        loop, channel = self._loop, self._channel
        if self._is_inherited:
            self.leave()
        elif loop is not None and not loop.is_closed():
            self._require_own_loop()
        self._endpoint.closed.set()
        if channel is None or self._is_inherited:
            return
        self._let_go()
        if loop is not None and not loop.is_closed():
            await channel.close()

    @property
    def is_open(self) -> bool:
        """Whether the channel is open in this process. Takes no lock."""
        return self._channel is not None and not self._is_inherited and not self._endpoint.closed.is_set()

    def drop(self) -> None:
        """Close the channel, as its client is gone."""
        self._endpoint.closed.set()
        self._let_go()

    def _let_go(self) -> None:
        """Keep no channel: collecting it closes its connection, and grpc.aio polls until its channels are collected."""
        self._channel, self._methods = None, {}

    @property
    def _is_inherited(self) -> bool:
        """Whether the channel belongs to the parent of this process."""
        return self._loop is not None and self._generation != forks.generation

    def leave(self) -> bool:
        """Let go of what belongs to the parent of this process. Return whether there was something."""
        if not self._is_inherited:
            return False
        forks.abandon(self._channel, self._methods)
        self._endpoint.renew()
        return True

    def _require_own_loop(self) -> None:
        if self._is_inherited:
            raise RuntimeError(
                f"this AsyncPolicyClient of {self._endpoint.address} was used before this process was forked; make a"
                " client after the fork, or start processes with multiprocessing's method spawn"
            )
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError(
                f"this AsyncPolicyClient of {self._endpoint.address} belongs to another event loop, that of its first"
                " call; make a client in each event loop, with `async with AsyncPolicyClient(...)` in the coroutine"
                " that uses it"
            )
