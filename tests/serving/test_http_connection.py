"""HTTP connections over real sockets, around an answer that a test writes."""

import asyncio
import contextlib
import json

import numpy as np
import pytest
import uvloop

from serving.api.http.connection import HttpConnection
from serving.api.http.exchange import Exchange, HttpError, HttpReply, HttpRequest
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


@pytest.mark.parametrize(
    ("raw", "status", "message"),
    [
        (b"\x16\x03\x01\x00\xa5\x01\x00\r\n\r\n", 400, "the request is not HTTP/1.1"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "the version of HTTP must be 1.1, or 1.0"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "the request is not HTTP/1.1"),  # no host
        (b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1, 2\r\n\r\n", 400, "the request is not HTTP/1.1"),
        (b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n", 400, "the request is not HTTP/1.1"),
        (b"GET / HTTP/1.1\r\nHost: h\r\nA\0: 1\r\n\r\n", 400, "the request is not HTTP/1.1"),
        (
            b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n",
            501,
            "the transfer-encoding of the request is not supported",
        ),
        (b"GET / HTTP/1.1\r\nA: " + b"a" * 20_000, 431, "the headers of a request may have at most 16384 bytes"),
        (
            b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nxx\r\n",
            400,
            "the body of the request is malformed",
        ),
        (post(bytes(MAX_BODY + 1)), 413, "the body of this request may have at most 100000 bytes; send fewer rows"),
        (
            b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n20000\r\n" + bytes(0x20000),
            413,
            "the body of this request may have at most 100000 bytes; send fewer rows",
        ),
    ],
)
async def test_what_is_malformed_or_too_large_is_refused(raw: bytes, status: int, message: str) -> None:
    async with served() as server:
        peer = await server.connect()
        peer.send(raw)
        assert await peer.refusal() == (status, message)


async def test_a_body_may_come_in_few_small_chunks() -> None:
    head, small = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"
    async with served() as server:
        peer = await server.connect()
        peer.send(head + small * 64 + b"0\r\n\r\n")
        assert (await peer.reply())[2] == b"POST / 64"
        peer.send(head + b"200\r\n" + bytes(512) + b"\r\n" + small * 65 + b"0\r\n\r\n")
        assert (await peer.reply())[2] == b"POST / 577"
        peer.send(head + small * 65 + b"0\r\n\r\n")
        message = "the chunks of the body are too small; send at least 256 bytes in each"
        assert await peer.refusal() == (400, message)


async def test_a_large_body_is_refused_before_it_is_sent() -> None:
    async with served() as server:
        peer = await server.connect()
        peer.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100001\r\nExpect: 100-continue\r\n\r\n")
        assert (await peer.refusal())[0] == 413


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


async def test_refusals_after_a_head_request_have_a_body() -> None:
    head = GET.replace(b"GET", b"HEAD")
    async with served() as server:
        malformed, slow = await server.connect(), await server.connect()
        malformed.send(head + b"\0\r\n\r\n")
        assert (await malformed.reply(has_body=False))[0] == 200
        assert await malformed.refusal() == (400, "the request is not HTTP/1.1")
        slow.send(head + head[:-2])
        assert (await slow.reply(has_body=False))[0] == 200
        await server.timers.started(HEADER_S, 3)  # two of the connections, and that of the second request
        server.timers.fire(HEADER_S)
        assert await slow.refusal() == (408, "the headers of the request came too slowly")


async def test_a_bug_in_a_refusal_closes_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_connection: HttpConnection, _reply: HttpReply) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(HttpConnection, "_write", fail)
    async with served() as server:
        peer = await server.connect()
        peer.send(GET[:-2])
        await server.timers.started(HEADER_S, 2)
        with pytest.raises(ZeroDivisionError):
            server.timers.fire(HEADER_S)
        with contextlib.suppress(ConnectionResetError):
            assert await peer.end() == b""


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


async def test_after_a_refusal_a_small_body_is_dropped_and_a_large_one_ends_the_connection() -> None:
    async def refuse(_request: HttpRequest, _exchange: Exchange) -> HttpReply:
        raise HttpError(404, "no")

    async with served(refuse) as server:
        peer = await server.connect()
        peer.send(post(bytes(60_000)) + GET)
        assert [(await peer.reply())[0] for _ in range(2)] == [404, 404]
        peer.send(post(bytes(70_000)))
        assert await peer.refusal() == (404, "no")


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


async def test_damaged_requests_get_an_answer_or_an_end_and_leave_nothing(caplog: pytest.LogCaptureFixture) -> None:
    random = np.random.default_rng(0)
    good = post(b"a" * 20, "Expect: 100-continue", "Upgrade: h2c", "Connection: upgrade") + GET
    chunked = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n"
    pieces = [
        b"\r\n",
        b"\n",
        b":",
        b" ",
        b"\0",
        b"\xff",
        b"Content-Length: 3\r\n",
        b"9" * 20,
        b"HTTP/1.0",
        b"HEAD ",
        b"",
    ]
    async with served() as server:
        for number in range(300):
            raw = bytearray((good, chunked)[number % 2])
            for _ in range(random.integers(1, 4)):
                start = int(random.integers(len(raw)))
                raw[start : start + int(random.integers(0, 9))] = pieces[random.integers(len(pieces))]
            peer = await server.connect()
            peer.send(bytes(raw))
            peer.writer.write_eof()
            with contextlib.suppress(ConnectionResetError):
                assert (await peer.end())[:9] in (b"", b"HTTP/1.1 ")
            peer.writer.close()
        await server.nothing_is_held()
        peer = await server.connect()
        peer.send(GET)
        assert (await peer.reply())[2] == b"GET /a?b 0"
    assert caplog.records == []


async def test_a_peer_that_asks_for_another_protocol_gets_http_1() -> None:
    async with served() as server:
        peer = await server.connect()
        for _ in range(2):
            peer.send(GET.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"))
            assert (await peer.reply())[2] == b"GET /a?b 0"
