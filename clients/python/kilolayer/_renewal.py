"""A channel to a name, which is replaced when no server is found under the name.

gRPC asks DNS again after a pause that grows to two minutes. A name is often unknown while its only server restarts, and
then stands for another IP address. A new channel asks immediately, so the client opens one about every second until a
server is found. The calls on the old channel may still be answered, by a server that drains: it is closed after them.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from typing import Any, Callable

import grpc
import grpc.aio

_PAUSE_S = (0.8, 1.2)  # between two renewals, at random so that many clients do not come at the same time


class Renewal:
    """Decides when a channel is replaced. Not thread-safe, except `failed`.

    Args:
        clock: gives the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed = False
        self._earliest_s = clock()

    def failed(self) -> None:
        """Note that no server was found."""
        self._failed = True

    def is_due(self) -> bool:
        """Return whether to replace the channel now; if so, the next time is about a second later."""
        now_s = self._clock()
        if not self._failed or now_s < self._earliest_s:
            return False
        self._failed = False
        self._earliest_s = now_s + random.uniform(*_PAUSE_S)  # noqa: S311  no secret
        return True


class _Generation:
    """One of the channels, with its methods and the number of its calls."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.methods: dict[str, Callable[..., Any]] = {}  # by path
        self.calls = 0
        self.streams: set[object] = set()  # the open ones; gRPC's threads remove from it without a lock

    @property
    def is_used(self) -> bool:
        """Whether a call or a stream is open."""
        return bool(self.calls or self.streams)


class _Channel:
    """What both kinds of channels share: the choice of the generation for a call."""

    def __init__(self, open_channel: Callable[[], Any], renewal: Renewal) -> None:
        self._open_channel = open_channel
        self._renewal = renewal
        self._lock = threading.Lock()
        self._closed = False
        self._generations = [_Generation(open_channel())]  # the last is for new calls

    def _begin(self) -> _Generation:
        """Return the generation for a call, with the call counted."""
        with self._lock:
            if not self._closed and self._renewal.is_due():
                self._generations.append(_Generation(self._open_channel()))
            generation = self._generations[-1]
            generation.calls += 1
        self._close_unused()
        return generation

    def _end(self, generation: _Generation) -> None:
        """Count a call as ended."""
        with self._lock:
            generation.calls -= 1
        self._close_unused()

    def _close_unused(self) -> None:
        if len(self._generations) == 1:
            return
        with self._lock:
            *old, last = self._generations
            used = [generation for generation in old if generation.is_used]
            unused = [generation for generation in old if generation not in used]
            self._generations = [*used, last]
        for generation in unused:
            self._close(generation.channel)

    def _take_all(self) -> list[Any]:
        """Return every channel, to be closed with the client."""
        with self._lock:
            self._closed = True
            return [generation.channel for generation in self._generations]

    def _close(self, channel: Any) -> None:
        raise NotImplementedError


class RenewedChannel(_Channel):
    """Takes the place of a `grpc.Channel`."""

    def unary_unary(self, path: str, **codecs: Any) -> Callable[..., Any]:
        """As `grpc.Channel.unary_unary`, for a call that waits."""

        def call(request: Any, **options: Any) -> Any:
            generation = self._begin()
            try:
                if path not in generation.methods:
                    generation.methods[path] = generation.channel.unary_unary(path, **codecs)
                return generation.methods[path](request, **options)
            finally:
                self._end(generation)

        return call

    def stream_stream(self, path: str, **codecs: Any) -> Callable[..., Any]:
        """As `grpc.Channel.stream_stream`."""

        def call(requests: Any, **options: Any) -> Any:
            generation = self._begin()
            try:
                stream = generation.channel.stream_stream(path, **codecs)(requests, **options)
                # gRPC calls this in a thread that closing the channel waits for. The next call closes the channel.
                generation.streams.add(stream)
                if not stream.add_callback(lambda: generation.streams.discard(stream)):  # ended already
                    generation.streams.discard(stream)
                return stream
            finally:
                self._end(generation)

        return call

    def close(self) -> None:
        """Close the channel. Pending calls are canceled."""
        for channel in self._take_all():
            channel.close()

    def _close(self, channel: grpc.Channel) -> None:
        channel.close()


class RenewedAsyncChannel(_Channel):
    """Takes the place of a `grpc.aio.Channel`."""

    def __init__(self, open_channel: Callable[[], grpc.aio.Channel], renewal: Renewal) -> None:
        super().__init__(open_channel, renewal)
        self._closing: set[asyncio.Future[None]] = set()

    def unary_unary(self, path: str, **codecs: Any) -> Callable[..., Any]:
        """As `grpc.aio.Channel.unary_unary`."""

        def call(request: Any, **options: Any) -> Any:
            generation = self._begin()
            try:
                if path not in generation.methods:
                    generation.methods[path] = generation.channel.unary_unary(path, **codecs)
                pending = generation.methods[path](request, **options)
            except BaseException:
                self._end(generation)
                raise
            pending.add_done_callback(lambda _: self._end(generation))
            return pending

        return call

    async def close(self) -> None:
        """Close the channel. Pending calls are canceled."""
        await asyncio.gather(*self._closing, *(channel.close() for channel in self._take_all()))

    def _close(self, channel: grpc.aio.Channel) -> None:
        closing = asyncio.ensure_future(channel.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
