"""Sending: waits until a peer has received a reply, and aborts the connection of a peer that receives nothing."""

import asyncio

from serving.api.http.limits import OneTimer


class Sending:
    """Replies on their way to one peer.

    Args:
        transport: of the connection; calls `pause` and `resume` by way of its protocol.
        timer: of the connection.
        limit_s: in each such period, the peer must receive a part.
    """

    def __init__(self, transport: asyncio.Transport, timer: OneTimer, *, limit_s: float) -> None:
        transport.set_write_buffer_limits(high=0)  # so that a reply is known to be sent
        self._transport = transport
        self._timer = timer
        self._limit_s = limit_s
        self.is_incomplete = False
        """Whether the peer, or the kernel, has not received everything yet."""
        self._sent: asyncio.Future[None] | None = None

    def pause(self) -> None:
        """The peer has not received everything yet."""
        self.is_incomplete = True

    def resume(self) -> None:
        """The peer, or the kernel, has received everything."""
        self.is_incomplete = False
        if self._sent and not self._sent.done():
            self._sent.set_result(None)

    async def wait(self) -> None:
        """Wait until everything is sent. Aborts the connection of a peer that receives nothing."""
        self._sent = asyncio.get_running_loop().create_future()
        self._check(self._transport.get_write_buffer_size())
        try:
            await self._sent
        finally:
            self._sent = None
            self._timer.clear()

    def _check(self, left: int) -> None:
        """Close the connection of a peer that does not receive its reply, of which `left` bytes wait."""

        def check() -> None:
            now_left = self._transport.get_write_buffer_size()
            if now_left >= left:
                self._transport.abort()
            else:
                self._check(now_left)

        self._timer.set(self._limit_s, check)
