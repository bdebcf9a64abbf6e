"""The gRPC transport, over a real port, around methods that a test writes."""

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from serving.api import grpc_options, grpc_transport
from serving.api.grpc_transport import GrpcTransport
from serving.api.open_call import CALL_BYTES, STREAM_BYTES
from serving.api.rpc import RpcContext, StreamMethod, UnaryMethod
from serving.errors import OverloadedError, Reason, StartupError
from serving.sockets import Address, TcpAddress, UnixAddress
from tests.serving.open_service import open_service

HTTP2_HELLO = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + "\0\0\0\4\0\0\0\0\0"  # and no setting
FREE = TcpAddress("127.0.0.1", 0)
ECHO, STREAM = "/test.Service/Echo", "/test.Service/Stream"


@contextlib.asynccontextmanager
async def served(
    unary: UnaryMethod, stream: StreamMethod | None = None, *, max_request_bytes: int = 2**20
) -> AsyncGenerator[grpc.aio.Channel]:
    """A channel to a service with the methods Echo, which is `unary`, and Stream."""
    service = open_service({"Echo": unary}, {"Stream": stream} if stream else {})
    transport = GrpcTransport([service], max_request_bytes=max_request_bytes)
    address = await transport.start(FREE)
    async with grpc.aio.insecure_channel(str(address)) as channel:
        yield channel
    await transport.stop(1)


def test_no_other_files_of_the_server_import_grpc() -> None:
    serving = Path(grpc_transport.__file__).parents[1]
    found = [
        path.relative_to(serving).as_posix()
        for path in serving.rglob("*.py")
        if re.search(r"^\s*(import|from) grpc\b", path.read_text(), re.MULTILINE)
    ]
    clients = ["admin.py", "admin_channel.py"]
    assert sorted(found) == [*clients, "api/call_handlers.py", "api/grpc_port.py", "api/grpc_transport.py"]


async def test_a_method_gets_the_bytes_the_name_the_deadline_and_the_metadata() -> None:
    seen: list[RpcContext] = []

    async def echo(raw: bytes, context: RpcContext) -> bytes:
        seen.append(context)
        assert context.metadata()["x-robot"] == "seven"
        assert "x-secret-bin" not in context.metadata()
        return raw + b"!"

    async with served(echo) as channel:
        call = channel.unary_unary(ECHO)
        before_s = time.monotonic()
        assert await call(b"hi", timeout=50, metadata=(("x-robot", "seven"), ("x-secret-bin", b"\0"))) == b"hi!"
        assert await call(b"", metadata=(("x-robot", "seven"),)) == b"!"
    timed, untimed = seen
    assert timed.method == untimed.method == ECHO
    assert before_s + 49 < timed.deadline_s < time.monotonic() + 51
    assert untimed.deadline_s == float("inf")


async def contexts_of_two_connections(address: Address) -> list[RpcContext]:
    """The contexts of two calls and then two streams over each of two connections."""
    contexts: list[RpcContext] = []

    async def unary(raw: bytes, context: RpcContext) -> bytes:
        contexts.append(context)
        return raw

    async def stream(requests: AsyncIterator[bytes], context: RpcContext) -> AsyncGenerator[bytes]:
        contexts.append(context)
        async for request in requests:
            yield request

    transport = GrpcTransport([open_service({"Echo": unary}, {"Stream": stream})], max_request_bytes=1)
    address = await transport.start(address)
    target = address.uri if isinstance(address, UnixAddress) else str(address)
    for _ in range(2):
        async with grpc.aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            for _ in range(2):
                await channel.unary_unary(ECHO)(b"")
            for _ in range(2):
                call: Any = channel.stream_stream(STREAM)(iter([b"a"]))
                assert await call.read() == b"a"
    await transport.stop(1)
    return contexts


async def test_calls_and_streams_of_one_connection_have_its_name_and_others_another() -> None:
    names = [context.connection for context in await contexts_of_two_connections(TcpAddress("127.0.0.1", 0))]
    first, second = names[0], names[4]
    assert names == [first] * 4 + [second] * 4
    assert first != second


async def test_the_caller_is_the_stream_or_the_connection_of_a_call() -> None:
    contexts = await contexts_of_two_connections(TcpAddress("127.0.0.1", 0))
    callers = [context.caller for context in contexts]
    assert [callers[call] for call in (0, 1, 4, 5)] == [contexts[call].connection for call in (0, 1, 4, 5)]
    assert len(set(callers)) == 2 + 4  # connections and streams


async def test_at_a_unix_socket_only_streams_can_be_told_apart(tmp_path: Path) -> None:
    contexts = await contexts_of_two_connections(UnixAddress(tmp_path / "s"))
    callers = [context.caller for context in contexts]
    assert [callers[call] for call in (0, 1, 4, 5)] == [""] * 4
    assert len(set(callers)) == 1 + 4


async def fail_unary(_raw: bytes, _context: RpcContext) -> bytes:
    raise OverloadedError("full", reason=Reason.QUEUE_AGE)


async def fail_stream(requests: AsyncIterator[bytes], _context: RpcContext) -> AsyncGenerator[bytes]:
    async for request in requests:
        yield request
        raise OverloadedError("full", reason=Reason.QUEUE_AGE)


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_an_error_reaches_the_caller_with_status_message_and_reason(kind: str) -> None:
    async with served(fail_unary, fail_stream) as channel:
        call: Any
        if kind == "unary":
            call = channel.unary_unary(ECHO)(b"", timeout=60)
        else:
            call = channel.stream_stream(STREAM)(iter([b"a", b"b"]), timeout=60)
            assert await call.read() == b"a"
        assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await call.details() == "full"
        trailers = await call.trailing_metadata()
        assert (trailers["kilolayer-reason"], trailers["grpc-retry-pushback-ms"]) == ("queue_age", "-1")


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_a_caller_that_leaves_cancels_its_method(kind: str) -> None:
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def unary(_raw: bytes, _context: RpcContext) -> bytes:
        await wait()
        return b""

    async def stream(_requests: AsyncIterator[bytes], _context: RpcContext) -> AsyncGenerator[bytes]:
        await wait()
        yield b""

    async with served(unary, stream) as channel:
        call: Any = channel.unary_unary(ECHO)(b"") if kind == "unary" else channel.stream_stream(STREAM)()
        asking = asyncio.ensure_future(call.code())
        async with asyncio.timeout(60):
            await began.wait()
            call.cancel()
            await cancelled.wait()
            await asking


async def test_a_passed_deadline_cancels_its_method() -> None:
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def unary(_raw: bytes, _context: RpcContext) -> bytes:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return b""

    async with served(unary) as channel:
        for timeout_s in (0.05, 1.0, 20.0):  # the longer ones for a machine too busy to begin it in a shorter one
            with pytest.raises(grpc.aio.AioRpcError) as late:
                await channel.unary_unary(ECHO)(b"", timeout=timeout_s)
            assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            if began.is_set():
                break
        await asyncio.wait_for(cancelled.wait(), timeout=60)


def test_a_silent_peer_is_dropped_within_5_s_if_it_never_speaks_http2_and_else_within_20_s() -> None:
    options = dict(
        grpc_options.server_options(max_request_bytes=1, max_streams=1, max_connections=None, share_port=False)
    )
    assert options["grpc.server_handshake_timeout_ms"] == 5_000
    for limit in ("grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms"):  # of a ping that is not answered
        assert options["grpc.keepalive_time_ms"] + options[limit] <= 20_000


@pytest.mark.parametrize("sent", ["", HTTP2_HELLO], ids=["nothing", "settings"])
async def test_a_peer_that_connects_and_falls_silent_is_dropped(monkeypatch: pytest.MonkeyPatch, sent: str) -> None:
    monkeypatch.setattr(grpc_options, "_SILENCE_MS", 100)
    transport = GrpcTransport([], max_request_bytes=1)
    address = await transport.start(FREE)
    assert isinstance(address, TcpAddress)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(sent.encode())
    await asyncio.wait_for(reader.read(), timeout=60)  # to its end; by gRPC's defaults it would last for minutes
    writer.close()
    await transport.stop(0)


async def test_a_request_beyond_the_byte_limit_is_refused_before_a_method_sees_it() -> None:
    async def never(_raw: bytes, _context: RpcContext) -> bytes:
        raise AssertionError("it was read")

    async with served(never, max_request_bytes=1000) as channel:
        with pytest.raises(grpc.aio.AioRpcError, match="1000") as refused:
            await channel.unary_unary(ECHO)(b"x" * 1001, timeout=60)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_method_can_have_its_reply_counted_and_refused() -> None:
    async def give_much(_raw: bytes, context: RpcContext) -> bytes:
        context.hold_reply(2**40)
        raise AssertionError("it is not refused")

    async with served(give_much) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary(ECHO)(b"x", timeout=60)
        trailers: Any = refused.value.trailing_metadata()
        assert (refused.value.code(), trailers["kilolayer-reason"]) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "memory_limit",
        )


async def test_a_taken_port_is_named_and_stopping_what_did_not_start_is_harmless() -> None:
    first, second = GrpcTransport([], max_request_bytes=1), GrpcTransport([], max_request_bytes=1)
    address = await first.start(FREE)
    with pytest.raises(StartupError, match=f"cannot bind --listen {address}: address in use; choose"):
        await second.start(address)
    await second.stop(0)
    await first.stop(0)


async def test_a_peer_whose_stream_is_ended_gets_status_and_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream has no room for a second request, and its peer reads no replies."""
    monkeypatch.setattr(grpc_transport, "_STALLED_S", 0.1)

    async def wait(requests: AsyncIterator[bytes], _context: RpcContext) -> AsyncGenerator[bytes]:
        async for request in requests:
            if not request:
                yield request

    service = open_service({}, {"Stream": wait})
    transport = GrpcTransport([service], max_request_bytes=1000, max_held_bytes=3 * (CALL_BYTES + STREAM_BYTES))
    address = await transport.start(FREE)
    async with grpc.aio.insecure_channel(str(address)) as channel, asyncio.timeout(60):
        call: Any = channel.stream_stream(STREAM)()
        await call.write(b"x")
        assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await call.trailing_metadata())["kilolayer-reason"] == "memory_limit"
        assert "read no replies for 0.1 s" in await call.details()
    await transport.stop(1)


async def test_streams_beyond_the_limit_of_a_connection_wait_at_the_client() -> None:
    began, may_end, running = asyncio.Semaphore(0), asyncio.Event(), 0

    async def wait(_raw: bytes, _context: RpcContext) -> bytes:
        nonlocal running
        running += 1
        began.release()
        await may_end.wait()
        return b""

    service = open_service({"Echo": wait, "Now": answer_now}, {})
    transport = GrpcTransport([service], max_request_bytes=1, max_streams=2)
    address = await transport.start(FREE)
    async with grpc.aio.insecure_channel(str(address)) as channel, asyncio.timeout(60):
        await channel.unary_unary("/test.Service/Now")(b"")  # from now on the client knows the limit
        calls = [asyncio.ensure_future(channel.unary_unary(ECHO)(b"")) for _ in range(3)]
        await began.acquire()
        await began.acquire()
        assert running == 2
        may_end.set()
        assert await asyncio.gather(*calls) == [b""] * 3
    await transport.stop(1)


async def answer_now(_raw: bytes, _context: RpcContext) -> bytes:
    return b""


LOGGED = [
    (grpc.aio.InternalError("cannot send"), 0),
    (UnicodeDecodeError("utf-8", b"Bearer \xff", 7, 8, "invalid start byte"), 0),
    (ValueError("a bug"), 1),
]


@pytest.mark.parametrize(("error", "lines"), LOGGED)
async def test_grpc_writes_no_line_about_what_any_caller_can_cause(
    error: Exception, lines: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def echo(raw: bytes, _context: RpcContext) -> bytes:
        return raw

    async with served(echo):
        logging.getLogger("grpc._cython.cygrpc").error("raised in core by servicer method", exc_info=error)
    assert len(caplog.records) == lines
