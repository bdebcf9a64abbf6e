"""The connection of one AsyncPolicyClient: a channel of grpc.aio, which belongs to the event loop of the first call.

It does not refer to its client, so that a client that is dropped without `close` can be collected.
"""

from __future__ import annotations

import asyncio
from typing import Any, Callable

import grpc.aio

from kilolayer._channel import Endpoint, unary_methods
from kilolayer._forks import forks
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
            self._loop = asyncio.get_running_loop()
            self._generation = forks.generation
            self._channel = self._endpoint.open_async_channel()
            forks.use(self._channel)
            self._methods = unary_methods(self._channel, self._endpoint.metadata)
        else:
            self._require_own_loop()
        return self._methods

    async def close(self) -> None:
        """Close the channel. RuntimeError in another event loop than its own, unless that loop is closed."""
        loop, channel = self._loop, self._channel
        if self._is_inherited:
            self._leave()
        elif loop is not None and not loop.is_closed():
            self._require_own_loop()
        self._endpoint.closed.set()
        if channel is None or self._is_inherited:
            return
        forks.forget(channel)
        if loop is not None and loop.is_closed():
            self._channel, self._methods = None, {}  # collecting the channel closes its connection
        else:
            await channel.close()

    def drop(self) -> bool:
        """Close the channel, as its client is gone. Return whether it was open in this process."""
        channel = self._channel
        if self._is_inherited:
            self._leave()
            return False
        if channel is None or self._endpoint.closed.is_set():
            return False
        self._endpoint.closed.set()
        forks.forget(channel)
        self._channel, self._methods = None, {}  # collecting the channel closes its connection
        return True

    @property
    def _is_inherited(self) -> bool:
        """Whether the channel belongs to the parent of this process."""
        return self._loop is not None and self._generation != forks.generation

    def _leave(self) -> None:
        """Let go of what belongs to the parent of this process."""
        forks.abandon(self._channel, self._methods)
        self._endpoint.renew()

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
