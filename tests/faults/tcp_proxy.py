"""A TCP proxy that delays, slows, cuts or silences the connections between a client and a server.

    with TcpProxy("127.0.0.1:50051", faults=lambda number: Faults(delay_s=0.1) if number == 0 else Faults()) as proxy:
        channel = grpc.insecure_channel(proxy.address)
        ...
        proxy.connections[0].cut()

It runs an event loop in a thread of its own, so that any test can use it. Its methods may be called from any thread.
"""

import asyncio
import contextlib
import dataclasses
import math
import socket
import struct
import threading
from collections.abc import Callable
from typing import Self

_CHUNK_BYTES = 65536


@dataclasses.dataclass(frozen=True)
class Faults:
    """What is wrong with one connection, in each direction."""

    delay_s: float = 0.0  # before each chunk of bytes is passed on
    bytes_per_s: float = math.inf
    cut_after_bytes: float = math.inf  # reset the connection once the client has sent so many; the rest is dropped
    silent: bool = False  # from the start, see `ProxyConnection.silence`


class ProxyConnection:
    """One connection through the proxy: a socket to the client and one to the server."""

    def __init__(
        self, faults: Faults, loop: asyncio.AbstractEventLoop, *, to_client: asyncio.StreamWriter, number: int
    ) -> None:
        self.number = number
        self.sent_bytes = 0
        """Bytes of the client that were passed on to the server."""
        self.received_bytes = 0
        """Bytes of the server that were passed on to the client."""
        self.ended = threading.Event()
        """Set when either side, or the proxy, has closed the connection."""
        self._faults = faults
        self._loop = loop
        self._to_client = to_client
        self._to_server: asyncio.StreamWriter | None = None
        self._audible = asyncio.Event()
        if not faults.silent:
            self._audible.set()

    def silence(self) -> None:
        """Pass on nothing more in either direction. Both sockets stay open, as if a cable was pulled."""
        self._loop.call_soon_threadsafe(self._audible.clear)

    def resume(self) -> None:
        """Pass on what `silence` held back, and everything after it."""
        self._loop.call_soon_threadsafe(self._audible.set)

    def cut(self) -> None:
        """Reset both sockets."""
        self._loop.call_soon_threadsafe(self._reset)

    def abandon(self) -> None:
        """Reset the client's socket and keep the server's open: for the server, the client's machine lost power."""
        self.silence()
        self._loop.call_soon_threadsafe(_reset, self._to_client)

    async def run(self, reader: asyncio.StreamReader, host: str, *, port: int) -> None:
        """Connect to the server and pass bytes on until a side closes its socket."""
        try:
            from_server, self._to_server = await asyncio.open_connection(host, port)
        except OSError:  # no server listens: the client sees a reset, as without a proxy it would see a refusal
            self._reset()
            return
        pumps = [
            asyncio.create_task(self._pump(reader, self._to_server, is_sent=True)),
            asyncio.create_task(self._pump(from_server, self._to_client, is_sent=False)),
        ]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        if self._audible.is_set():
            self._reset()
        else:
            await asyncio.wait(pumps)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_sent: bool) -> None:
        faults = self._faults
        with contextlib.suppress(ConnectionError):  # how a connection ends is the result, not an error of the proxy
            while chunk := await reader.read(_CHUNK_BYTES):
                await self._audible.wait()
                await asyncio.sleep(faults.delay_s)
                if is_sent and self.sent_bytes + len(chunk) > faults.cut_after_bytes:
                    chunk = chunk[: int(faults.cut_after_bytes) - self.sent_bytes]
                    is_last = True
                else:
                    is_last = False
                writer.write(chunk)
                await writer.drain()
                if is_sent:
                    self.sent_bytes += len(chunk)
                else:
                    self.received_bytes += len(chunk)
                if is_last:
                    return
                await asyncio.sleep(len(chunk) / faults.bytes_per_s)

    def _reset(self) -> None:
        for writer in (self._to_client, self._to_server):
            if writer is not None:
                _reset(writer)
        self.ended.set()


class TcpProxy:
    """A proxy on a free port of 127.0.0.1, in a `with` statement.

    Args:
        target: "host:port" of the server.
        faults: the faults of each connection, by its number: 0, 1, 2 ... in the order of arrival.
    """

    def __init__(self, target: str, *, faults: Callable[[int], Faults] = lambda _: Faults()) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._faults = faults
        self.connections: list[ProxyConnection] = []
        """Every connection so far, in the order of arrival."""
        self.address = ""
        """"host:port" for clients."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        self.address = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(timeout=60)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(timeout=60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> str:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(self.connections)
        connection = ProxyConnection(self._faults(number), self._loop, to_client=writer, number=number)
        self.connections.append(connection)
        with contextlib.suppress(asyncio.CancelledError):  # the proxy closes
            await connection.run(reader, self._host, port=self._port)

    async def _close(self) -> None:
        self._server.close()
        for connection in self.connections:
            connection._reset()  # pyright: ignore[reportPrivateUsage]
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a socket so that its peer sees a reset."""
    sock: socket.socket | None = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0 and not writer.transport.is_closing():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
