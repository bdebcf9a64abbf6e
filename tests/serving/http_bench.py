"""An HTTP transport around an answer that a test writes, with timers that the test fires, and clients of it."""

import asyncio
import contextlib
import dataclasses
import json
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

from serving.api.held_bytes import HeldBytes
from serving.api.http.events import HttpEvents
from serving.api.http.exchange import Answer, Exchange, HttpReply, HttpRequest
from serving.api.http.limits import HttpLimits
from serving.api.http.transport import HttpTransport
from serving.sockets import TcpAddress

HEADER_S, IDLE_S, BODY_S, SEND_S, LINGER_S = 61.0, 62.0, 63.0, 64.0, 65.0
LIMITS = HttpLimits(
    max_connections=8, header_s=HEADER_S, idle_s=IDLE_S, body_s=BODY_S, send_s=SEND_S, linger_s=LINGER_S
)
MAX_BODY = 100_000
GET = b"GET /a?b HTTP/1.1\r\nHost: h\r\n\r\n"


def post(body: bytes, *headers: str, path: str = "/") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: h", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


async def echo(request: HttpRequest, exchange: Exchange) -> HttpReply:
    """Answer with the method, the target and the length of the body."""
    body = await exchange.read_body(MAX_BODY)
    return HttpReply(200, (), f"{request.method} {request.target} {len(body)}".encode())


async def until(condition: Callable[[], bool]) -> None:
    ends_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < ends_s, "waited for 30 s"
        await asyncio.sleep(0.001)


class Timer:
    def __init__(self, delay_s: float, action: Callable[[], None]) -> None:
        self.delay_s, self.action, self.is_pending = delay_s, action, True

    def cancel(self) -> None:
        self.is_pending = False


class Timers:
    """The timers of a transport. They fire when a test says so."""

    def __init__(self) -> None:
        self._timers: list[Timer] = []

    def call_later(self, delay_s: float, action: Callable[[], None]) -> Timer:
        self._timers.append(Timer(delay_s, action))
        return self._timers[-1]

    async def started(self, delay_s: float, count: int) -> None:
        """Wait until `count` timers of `delay_s` have been started in all."""
        await until(lambda: sum(each.delay_s == delay_s for each in self._timers) == count)

    def fire(self, delay_s: float) -> None:
        for each in [each for each in self._timers if each.delay_s == delay_s and each.is_pending]:
            each.cancel()
            each.action()


class Peer:
    """A client that writes bytes and reads replies."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, raw: bytes) -> None:
        self.writer.write(raw)

    async def reply(self, *, has_body: bool = True) -> tuple[int, dict[str, str], bytes]:
        async with asyncio.timeout(30):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            status, *lines = head.split("\r\n")[:-2]
            headers = dict(line.lower().split(": ", 1) for line in lines)
            size = int(headers.get("content-length", 0)) if has_body else 0
            return int(status.split()[1]), headers, await self.reader.readexactly(size)

    async def refusal(self) -> tuple[int, str]:
        """The status and the error of a reply, after which the server sends nothing more."""
        status, headers, body = await self.reply()
        assert headers["connection"] == "close"
        assert await self.end() == b""
        return status, json.loads(body)["error"]

    async def send_until_dropped(self) -> None:
        async with asyncio.timeout(30):
            while True:
                self.send(bytes(1000))
                await self.writer.drain()
                await asyncio.sleep(0)

    async def end(self) -> bytes:
        """What comes until the server closes the connection."""
        async with asyncio.timeout(30):
            return await self.reader.read()


class Served:
    """A transport that listens."""

    def __init__(self, transport: HttpTransport, address: TcpAddress, *, held: HeldBytes, timers: Timers) -> None:
        self.transport, self.held, self.timers, self._address = transport, held, timers, address
        self._peers: list[Peer] = []

    async def connect(self) -> Peer:
        peer = Peer(*await asyncio.open_connection(self._address.host, self._address.port))
        self._peers.append(peer)
        return peer

    async def nothing_is_held(self) -> None:
        await until(lambda: not self.held.total)

    def close(self) -> None:
        for peer in self._peers:
            peer.writer.close()


@contextlib.asynccontextmanager
async def served(
    answer: Answer = echo, *, max_held: int = 2**24, events: HttpEvents | None = None, **limits: Any
) -> AsyncGenerator[Served]:
    held, timers = HeldBytes(max_held), Timers()
    all_limits = dataclasses.replace(LIMITS, **limits)
    transport = HttpTransport(answer, held=held, limits=all_limits, events=events, call_later=timers.call_later)
    served = Served(transport, await transport.start(TcpAddress("127.0.0.1", 0)), held=held, timers=timers)
    try:
        yield served
        await served.nothing_is_held()
    finally:
        served.close()
        await transport.stop(0)
