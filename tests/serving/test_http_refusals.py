"""HTTP requests that are malformed, ambiguous, too large or refused, over real sockets."""

import contextlib

import numpy as np
import pytest

from serving.api.http.connection import HttpConnection
from serving.api.http.events import HttpEvents
from serving.api.http.exchange import Exchange, HttpError, HttpReply, HttpRequest
from tests.serving.http_bench import BODY_S, GET, HEADER_S, MAX_BODY, post, served, until

AMBIGUOUS = "the length of the body is ambiguous; send either Content-Length or, in HTTP/1.1, chunks"


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
        (
            b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            AMBIGUOUS,
        ),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, AMBIGUOUS),
        (post(bytes(MAX_BODY + 1)), 413, "the body of this request may have at most 100000 bytes; send fewer rows"),
        (
            b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n20000\r\n" + bytes(0x20000),
            413,
            "the body of this request may have at most 100000 bytes; send fewer rows",
        ),
    ],
)
async def test_what_is_malformed_or_too_large_is_refused_and_counted(raw: bytes, status: int, message: str) -> None:
    counted: list[str] = []
    async with served(events=HttpEvents(on_refusal=counted.append)) as server:
        peer = await server.connect()
        peer.send(raw)
        assert await peer.refusal() == (status, message)
    assert counted == [{413: "body_too_large", 431: "headers_too_large"}.get(status, "malformed")]


async def test_slow_peers_and_connections_without_a_place_are_counted() -> None:
    counted: list[str] = []
    async with served(events=HttpEvents(on_refusal=counted.append), max_connections=2) as server:
        for slow, timer_s in ((GET[:-2], HEADER_S), (post(b"ab")[:-1], BODY_S)):
            peer = await server.connect()
            peer.send(slow)
            await server.timers.started(timer_s, 2 if timer_s == HEADER_S else 1)
            server.timers.fire(timer_s)
            assert (await peer.refusal())[0] == 408
            peer.writer.close()
        assert counted == ["too_slow"] * 2
        await until(lambda: not server.transport._open.all)  # pyright: ignore[reportPrivateUsage]
        first, second = await server.connect(), await server.connect()
        for peer in (first, second):
            peer.send(post(b"ab")[:-1])
        await server.timers.started(BODY_S, 3)
        third = await server.connect()
        third.send(GET)
        assert (await third.reply())[0] == 200
        assert counted[2:] == ["dropped"]
        server.timers.fire(BODY_S)  # ends the second one, so that nothing is held


async def test_a_connection_that_is_refused_is_counted() -> None:
    counted: list[str] = []
    async with served(events=HttpEvents(on_refusal=counted.append), max_connections=0) as server:
        assert (await (await server.connect()).refusal())[0] == 503
        server.transport._open.is_closed = True  # pyright: ignore[reportPrivateUsage]
        message = "the server is shutting down; try again later"
        assert await (await server.connect()).refusal() == (503, message)
    assert counted == ["too_many_connections", "stopping"]


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


async def test_after_a_refusal_a_small_body_is_dropped_and_a_large_one_ends_the_connection() -> None:
    async def refuse(_request: HttpRequest, _exchange: Exchange) -> HttpReply:
        raise HttpError(404, "no")

    async with served(refuse) as server:
        peer = await server.connect()
        peer.send(post(bytes(60_000)) + GET)
        assert [(await peer.reply())[0] for _ in range(2)] == [404, 404]
        peer.send(post(bytes(70_000)))
        assert await peer.refusal() == (404, "no")


async def test_after_a_refusal_instead_of_100_continue_the_connection_ends() -> None:
    async def refuse(_request: HttpRequest, _exchange: Exchange) -> HttpReply:
        raise HttpError(404, "no")

    async with served(refuse) as server:
        peer = await server.connect()
        peer.send(post(b"abc", "Expect: 100-continue")[:-3] + GET)
        assert await peer.refusal() == (404, "no")


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
