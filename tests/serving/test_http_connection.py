"""HTTP connections over real sockets, around an answer that a test writes."""

import asyncio
import contextlib
import json
import socket

import pytest
import uvloop

from serving.api.http.exchange import Exchange, HttpError, HttpReply, HttpRequest
from serving.sockets import BACKLOG
from tests.serving.http_bench import (
    BODY_S,
    GET,
    HEADER_S,
    IDLE_S,
    LINGER_S,
    MAX_BODY,
    SEND_S,
    Served,
    post,
    served,
    until,
)

LONG_S = 60.0  # no test takes so long


async def requests_of_one_connection() -> None:
    async with served() as server:
        peer = await server.connect()
        peer.send(GET)
        status, headers, body = await peer.reply()
        assert (status, headers["content-length"], body) == (200, "10", b"GET /a?b 0")
        assert "connection" not in headers
        peer.send(post(bytes(70_000)))
        assert (await peer.reply())[2] == b"POST / 70000"
        peer.send(post(b"a") + GET + post(b"ab"))  # without waiting for replies
        assert [(await peer.reply())[2] for _ in range(3)] == [b"POST / 1", b"GET /a?b 0", b"POST / 2"]
        peer.send(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n")
        assert (await peer.reply())[2] == b"POST / 3"
        peer.send(GET.replace(b"GET", b"HEAD"))
        assert (await peer.reply(has_body=False))[1]["content-length"] == "11"
        peer.send(post(b"abc", "Expect: 100-continue")[:-3])
        assert (await peer.reply())[0] == 100
        peer.send(b"abc")
        assert (await peer.reply())[2] == b"POST / 3"
        peer.send(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        status, headers, _ = await peer.reply()
        assert (status, headers["connection"]) == (200, "close")
        assert await peer.end() == b""


async def test_a_connection_has_many_requests() -> None:
    await requests_of_one_connection()


def test_a_connection_has_many_requests_in_the_event_loop_of_a_server() -> None:
    uvloop.run(requests_of_one_connection())


async def test_the_event_loop_listens_with_the_backlog_of_the_other_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    listened: list[int] = []

    class Recorded(socket.socket):
        def listen(self, backlog: int = 0, /) -> None:
            listened.append(backlog)
            super().listen(backlog)

    monkeypatch.setattr(socket, "socket", Recorded)
    async with served():
        pass
    assert listened == [BACKLOG, BACKLOG]


async def test_requests_behind_one_that_is_answered_wait_and_are_limited() -> None:
    go_on = asyncio.Event()

    async def wait(_request: HttpRequest, _exchange: Exchange) -> HttpReply:
        await go_on.wait()
        return HttpReply(200, (), b"")

    async with served(wait) as server:
        peer = await server.connect()
        peer.send(GET * 200_000)  # 6 MB, more than buffers of the kernel take
        await until(lambda: server.held.total > 0)
        for _ in range(500):
            await asyncio.sleep(0)
        assert peer.writer.transport.get_write_buffer_size()  # of which the server could have read 32 MB
        go_on.set()
        for _ in range(1000):
            assert (await peer.reply())[0] == 200
        peer.writer.transport.abort()


async def test_a_connection_without_a_request_is_closed() -> None:
    async with served() as server:
        peer = await server.connect()
        await server.timers.started(HEADER_S, 1)
        server.timers.fire(HEADER_S)
        assert await peer.end() == b""


async def test_slow_headers_are_refused() -> None:
    async with served() as server:
        peer = await server.connect()
        peer.send(GET + GET[:-2])
        assert (await peer.reply())[0] == 200
        await server.timers.started(HEADER_S, 2)
        server.timers.fire(HEADER_S)
        assert await peer.refusal() == (408, "the headers of the request came too slowly")


async def test_a_slow_body_is_refused() -> None:
    async with served(body_bytes=40_000) as server:
        peer = await server.connect()
        raw = post(bytes(80_001))
        peer.send(raw[:-40_001])
        await until(lambda: server.held.total == (16 << 10) + 40_000)
        server.timers.fire(BODY_S)
        peer.send(raw[-40_001:-1])
        await until(lambda: server.held.total == (16 << 10) + 80_000)
        server.timers.fire(BODY_S)  # it has brought enough in each of both periods
        server.timers.fire(BODY_S)
        assert await peer.refusal() == (408, "the body of the request came too slowly")


async def test_an_idle_connection_is_closed() -> None:
    async with served() as server:
        peer = await server.connect()
        peer.send(GET)
        assert (await peer.reply())[0] == 200
        await server.timers.started(IDLE_S, 1)
        server.timers.fire(IDLE_S)
        assert await peer.end() == b""


async def test_a_peer_that_keeps_sending_after_a_refusal_is_dropped() -> None:
    async with served() as server:
        peer = await server.connect()
        peer.send(post(bytes(MAX_BODY + 1)))
        assert (await peer.refusal())[0] == 413
        server.timers.fire(LINGER_S)
        with pytest.raises(ConnectionError):
            await peer.send_until_dropped()


async def test_a_peer_that_does_not_receive_its_reply_is_dropped() -> None:
    async def large(_request: HttpRequest, exchange: Exchange) -> HttpReply:
        exchange.hold(2**25)
        return HttpReply(200, (), bytes(2**25))  # more than buffers of the kernel take

    def fire_until_dropped(server: Served) -> bool:
        server.timers.fire(SEND_S)
        return not server.held.total

    async with served(large, max_held=2**30) as server:
        peer = await server.connect()
        peer.send(GET)
        await peer.reader.readuntil(b"\r\n\r\n")
        assert server.held.total > 2**25
        await until(lambda: fire_until_dropped(server))


async def test_a_caller_that_is_gone_has_its_call_cancelled() -> None:
    seen: asyncio.Queue[str] = asyncio.Queue()

    async def wait(_request: HttpRequest, _exchange: Exchange) -> HttpReply:
        seen.put_nowait("begun")
        try:
            await asyncio.Event().wait()
        finally:
            seen.put_nowait("cancelled")
        raise AssertionError

    async with served(wait) as server:
        peer = await server.connect()
        peer.send(GET)
        assert await seen.get() == "begun"
        peer.writer.close()
        assert await asyncio.wait_for(seen.get(), 30) == "cancelled"


async def test_a_failure_is_500_without_details(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(_request: HttpRequest, _exchange: Exchange) -> HttpReply:
        raise ZeroDivisionError("secret")

    async with served(fail) as server:
        peer = await server.connect()
        peer.send(post(b"abc"))
        status, headers, body = await peer.reply()
        assert (status, headers["kilolayer-reason"]) == (500, "internal")
        assert json.loads(body) == {"error": "the server failed on this call; its log says why"}
        peer.send(GET)  # the connection goes on
        assert (await peer.reply())[0] == 500
    assert [record.message for record in caplog.records] == ["POST '/' failed", "GET '/a?b' failed"]


async def test_bodies_count_until_the_reply_is_sent_and_are_limited() -> None:
    held: list[int] = []

    async def count(_request: HttpRequest, exchange: Exchange) -> HttpReply:
        await exchange.read_body(MAX_BODY)
        held.append(server.held.total)
        exchange.hold(5000)
        held.append(server.held.total)
        return HttpReply(200, (), b"")

    async with served(count, max_held=200_000) as server:
        peer = await server.connect()
        peer.send(post(bytes(50_000)))
        assert (await peer.reply())[0] == 200
        first, second = held
        assert (first - 50_000, second - first) == (16 << 10, 5000)
        await server.nothing_is_held()
        for first in (1000, 0):  # bytes of the body that come with the headers
            raw = post(bytes(90_000))  # with what every call counts, more than half of the limit
            other = await server.connect()
            other.send(raw[: first - 90_000])
            await until(lambda: server.held.total >= 16 << 10)
            other.send(raw[first - 90_000 :])
            status, headers, body = await other.reply()
            assert (status, headers["kilolayer-reason"]) == (429, "memory_limit")
            assert "retry-after" not in headers
            assert json.loads(body)["error"].startswith("the server holds 0 MB of requests and replies")
            other.writer.close()
            await server.nothing_is_held()


async def test_a_new_connection_takes_the_place_of_the_one_that_waited_longest() -> None:
    arrived = asyncio.Semaphore(0)
    go_on = asyncio.Event()

    async def wait(_request: HttpRequest, _exchange: Exchange) -> HttpReply:
        arrived.release()
        await go_on.wait()
        return HttpReply(200, (), b"")

    async with served(wait, max_connections=2) as server:
        busy, waiting = await server.connect(), await server.connect()
        busy.send(GET)
        await arrived.acquire()
        third = await server.connect()
        assert await waiting.end() == b""
        third.send(GET)
        await arrived.acquire()
        fourth = await server.connect()
        assert await fourth.refusal() == (503, "the server has too many connections; try again later")
        go_on.set()
        assert [(await peer.reply())[0] for peer in (busy, third)] == [200, 200]


async def test_a_connection_that_owes_the_body_of_an_answered_request_gives_its_place_to_a_new_one() -> None:
    async def refuse(_request: HttpRequest, _exchange: Exchange) -> HttpReply:
        raise HttpError(404, "no")

    async with served(refuse, max_connections=1) as server:
        first = await server.connect()
        first.send(post(b"a")[:-1])
        assert (await first.reply())[0] == 404
        await server.timers.started(BODY_S, 1)
        second = await server.connect()
        second.send(GET)
        assert (await second.reply())[0] == 404
        assert await first.end() == b""


async def test_stop_closes_idle_connections_and_the_others_after_their_reply() -> None:
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def wait(_request: HttpRequest, _exchange: Exchange) -> HttpReply:
        arrived.set()
        await go_on.wait()
        return HttpReply(200, (), b"done")

    async with served(wait) as server:
        idle, busy = await server.connect(), await server.connect()
        busy.send(GET)
        await arrived.wait()
        stopping = asyncio.create_task(server.transport.stop(LONG_S))
        assert await idle.end() == b""
        with pytest.raises(ConnectionRefusedError):
            await server.connect()
        go_on.set()
        status, headers, body = await busy.reply()
        assert (status, headers["connection"], body) == (200, "close", b"done")
        assert await busy.end() == b""
        await stopping


async def test_stop_cancels_what_takes_longer() -> None:
    arrived = asyncio.Event()

    async def wait(_request: HttpRequest, _exchange: Exchange) -> HttpReply:
        arrived.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with served(wait) as server:
        peer = await server.connect()
        peer.send(GET)
        await arrived.wait()
        await server.transport.stop(0.05)
        with contextlib.suppress(ConnectionResetError):
            assert await peer.end() == b""


async def test_a_peer_that_asks_for_another_protocol_gets_http_1() -> None:
    async with served() as server:
        peer = await server.connect()
        for _ in range(2):
            peer.send(GET.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"))
            assert (await peer.reply())[2] == b"GET /a?b 0"
