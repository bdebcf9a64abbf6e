"""HttpTransport: serves HTTP/1.1 on one port, in the event loop of the server.

The library is h11, which parses and checks HTTP and leaves connections, timers and memory to this package. A server
that meets the limits of gRPC needs these in its own hands. aiohttp has no limit for the time that headers and bodies
take, nor for connections, and brings seven packages. uvicorn with starlette lacks the first, too, and wants to run the
process, with signals of its own. hypercorn limits times, but not connections, and brings HTTP/2 and five packages. None
of them can count what it holds together with gRPC. h11 has no dependencies, runs in any event loop and on Python 3.13
without warnings, and is what uvicorn, hypercorn and httpx use.
"""

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from serving.access import handshakes
from serving.access.tls import Certificates
from serving.api.held_bytes import HeldBytes
from serving.api.http.connection import HttpConnection
from serving.api.http.events import HttpEvents
from serving.api.http.exchange import Answer
from serving.api.http.limits import CallLater, HttpLimits, OpenConnections
from serving.api.read_gate import ReadGate
from serving.sockets import BACKLOG, TcpAddress, listening_socket

if TYPE_CHECKING:
    from serving.api.http.tls import TlsContexts

FLAG = "--http-port"
_STALLED_S = 10.0  # after which a request that finds no room for its body is refused
_READ_BYTES = 64 << 10  # at most, from one connection at a time
_CHECK_S = 0.01  # between two looks at the connections that are left


class HttpTransport:
    """An HTTP server.

    Args:
        answer: answers a request.
        held: the bytes that the server holds, of other transports, too.
        limits: of each connection.
        events: what is counted and traced.
        certificates: for TLS; None: plain text.
        share_port: whether other processes may listen on the port too.
        clock: monotonic seconds.
        call_later: starts a timer; None: that of the event loop.

    Raises:
        StartupError: OpenSSL refuses the certificates.
    """

    def __init__(
        self,
        answer: Answer,
        *,
        held: HeldBytes,
        limits: HttpLimits,
        events: HttpEvents | None = None,
        certificates: Certificates | None = None,
        share_port: bool = False,
        clock: Callable[[], float] = time.monotonic,
        call_later: CallLater | None = None,
    ) -> None:
        self._answer = answer
        self._held = held
        self._limits = limits
        self._events = events or HttpEvents()
        self._contexts = _contexts(certificates) if certificates else None
        self._share_port = share_port
        self._clock = clock
        self._call_later = call_later
        self._gate = ReadGate(stalled_s=_STALLED_S, clock=clock)
        self._open = OpenConnections(limits.max_connections)
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self._server: asyncio.Server | None = None

    async def start(self, address: TcpAddress) -> TcpAddress:
        """Listen on `address`, and return it with the number of its port.

        Raises:
            StartupError: the address cannot be bound.
        """
        bound, listening = listening_socket(FLAG, address, share_port=self._share_port)
        loop = asyncio.get_running_loop()
        # The event loop listens once more, by default with a backlog of 100.
        self._server = await loop.create_server(self._connection, sock=listening, backlog=BACKLOG)
        return bound

    async def stop(self, grace_s: float) -> None:
        """Close the port, idle connections, and each other one after its reply; all of them after `grace_s`."""
        if not self._server:
            return
        self._server.close()
        self._open.is_closed = True  # for connections that are accepted and not made yet
        ends_s = self._clock() + grace_s
        for connection in self._connections():
            connection.drain()
        while self._open.all and self._clock() < ends_s:  # noqa: ASYNC110  an event would serve this second only
            await asyncio.sleep(_CHECK_S)
        for connection in self._connections():
            connection.abort()
        await self._server.wait_closed()

    def _connections(self) -> list[HttpConnection]:
        return [each for each in self._open.all if isinstance(each, HttpConnection)]

    def _connection(self) -> asyncio.BufferedProtocol:
        connection = HttpConnection(
            self._answer,
            open_connections=self._open,
            held=self._held,
            gate=self._gate,
            limits=self._limits,
            buffer=self._buffer,
            events=self._events,
            call_later=self._call_later or asyncio.get_running_loop().call_later,
        )
        if self._contexts is None:
            return connection
        from serving.api.http.tls import TlsLayer

        return TlsLayer(connection, self._contexts.fetch(), buffer=self._buffer, failures=handshakes.FAILURES)


def _contexts(certificates: Certificates) -> "TlsContexts":
    from serving.api.http.tls import TlsContexts  # only TLS needs it

    return TlsContexts(certificates)
