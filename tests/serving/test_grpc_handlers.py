"""The handlers that the transport gives to gRPC, called with a fake of gRPC's context."""

import asyncio
import gc
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, cast

import grpc
import grpc.aio
import pytest

from serving.api import grpc_transport, incomplete_messages
from serving.api.grpc_transport import GrpcTransport
from serving.api.open_call import CALL_BYTES, STREAM_BYTES
from serving.api.rpc import RpcContext, RpcService
from serving.errors import InvalidRequestError, MemoryLimitError
from tests.serving.batcher_bench import WaitUntil
from tests.serving.fakes import turn_loop
from tests.serving.open_service import open_service

ECHO, STREAM = "/test.Service/Echo", "/test.Service/Stream"


class FakeGrpcContext:
    """What gRPC gives a handler. A write ends when the test lets it, or `abort` raises what it is told to.

    After the requests, a read gives the end of the stream, or lasts for ever (`endless`).
    """

    def __init__(self, *requests: bytes, abort_raises: Exception | None = None, endless: bool = False) -> None:
        self.events: list[str] = []
        self.aborted: tuple[Any, ...] = ()
        self.write_ends = asyncio.Semaphore(0)
        self._requests = iter(requests)
        self.ended: list[Callable[[object], None]] = []
        self._abort_raises = abort_raises
        self._endless = endless

    def time_remaining(self) -> None:
        return None

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def add_done_callback(self, callback: Callable[[object], None]) -> None:
        self.ended.append(callback)

    async def read(self) -> object:
        request = next(self._requests, None)
        self.events.append(f"read {request}")
        if request is None and self._endless:
            await asyncio.Event().wait()
        return grpc.aio.EOF if request is None else request

    async def write(self, reply: bytes) -> None:
        self.events.append(f"write {reply}")
        await self.write_ends.acquire()
        self.events.append("written")

    async def abort(self, *told: Any) -> None:
        self.aborted = told
        assert self._abort_raises
        raise self._abort_raises


def grpc_handler(service: RpcService, method: str, transport: GrpcTransport | None = None) -> Any:
    """The handler that gRPC calls for `method`."""
    transport = transport or GrpcTransport([service], max_request_bytes=1)
    details = cast("grpc.HandlerCallDetails", SimpleNamespace(method=method, invocation_metadata=()))
    return transport.handlers()[0].service(details)


async def test_a_peer_that_does_not_read_its_replies_is_not_read_from() -> None:
    async def echo(requests: AsyncIterator[bytes], _context: RpcContext) -> AsyncGenerator[bytes]:
        async for request in requests:
            yield request

    context = FakeGrpcContext(b"1", b"2")
    handler = grpc_handler(open_service({}, {"Stream": echo}), STREAM)
    serving = asyncio.create_task(handler.stream_stream(None, context))
    await turn_loop()
    assert context.events == ["read b'1'", "write b'1'"]
    context.write_ends.release()
    await turn_loop()
    assert context.events[2:] == ["written", "read b'2'", "write b'2'"]
    context.write_ends.release()
    await serving
    assert context.events[5:] == ["written", "read None"]


async def test_a_peer_that_leaves_while_a_reply_is_sent_ends_its_method() -> None:
    ended = asyncio.Event()

    async def stream(_requests: AsyncIterator[bytes], _context: RpcContext) -> AsyncGenerator[bytes]:
        try:
            yield b""
        finally:
            ended.set()

    handler = grpc_handler(open_service({}, {"Stream": stream}), STREAM)
    context = FakeGrpcContext()
    serving = asyncio.create_task(handler.stream_stream(None, context))
    await turn_loop()
    serving.cancel()
    await asyncio.wait({serving})
    assert serving.cancelled()
    assert ended.is_set()


async def test_a_caller_that_leaves_while_it_is_refused_makes_no_error() -> None:
    async def refuse(_raw: bytes, _context: RpcContext) -> bytes:
        raise InvalidRequestError("bad")

    context = FakeGrpcContext(abort_raises=grpc.aio.InternalError("execute_batch"))
    handler = grpc_handler(open_service({"Echo": refuse}, {}), ECHO)
    with pytest.raises(asyncio.CancelledError):
        await handler.unary_unary(b"", context)
    assert context.aborted == (grpc.StatusCode.INVALID_ARGUMENT, "bad", (("kilolayer-reason", "invalid_request"),))


async def echo_stream(requests: AsyncIterator[bytes], _context: RpcContext) -> AsyncGenerator[bytes]:
    async for request in requests:
        yield request


async def test_what_a_stream_holds_is_counted_until_its_reply_is_sent() -> None:
    service = open_service({}, {"Stream": echo_stream})
    transport = GrpcTransport([service], max_request_bytes=1)
    handler, context = grpc_handler(service, STREAM, transport), FakeGrpcContext(b"12345", endless=True)
    serving = asyncio.create_task(handler.stream_stream(None, context))
    await turn_loop()
    open_bytes = CALL_BYTES + STREAM_BYTES
    assert transport.held.total == open_bytes + 5 + 5  # the request, and the same bytes as a reply
    context.write_ends.release()
    await turn_loop()
    assert transport.held.total == open_bytes
    serving.cancel()
    await asyncio.wait({serving})
    for ended in context.ended:
        ended(context)
    assert transport.held.total == 0


async def test_a_stream_beyond_the_limit_ends_even_while_its_reply_cannot_be_sent() -> None:
    limits: list[None] = []
    reader: list[asyncio.Task[None]] = []

    async def pipelined(requests: AsyncIterator[bytes], _context: RpcContext) -> AsyncGenerator[bytes]:
        """Reads on while a reply waits to be sent, as the streams of requests do."""

        async def read() -> None:
            async for _ in requests:
                pass

        reader.append(asyncio.create_task(read()))
        yield b"reply"

    service = open_service({}, {"Stream": pipelined})
    limit = 3 * (CALL_BYTES + STREAM_BYTES + 5)  # the stream and its reply take a third, so it may still be read from
    transport = GrpcTransport(
        [service], max_request_bytes=1, max_held_bytes=limit, on_limit=lambda: limits.append(None)
    )
    context = FakeGrpcContext(b"x" * (limit // 6 + 1), abort_raises=grpc.aio.AbortError())
    handler = grpc_handler(service, STREAM, transport)
    with pytest.raises(grpc.aio.AbortError):
        await asyncio.wait_for(handler.stream_stream(None, context), timeout=60)
    assert context.events[0] == "write b'reply'"
    code, message, trailers = context.aborted
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert message.startswith("the server holds 0 MB of requests and replies for this connection, which is too much")
    assert trailers == (("kilolayer-reason", "memory_limit"), ("grpc-retry-pushback-ms", "-1"))
    assert len(limits) == 1
    assert isinstance((await asyncio.gather(*reader, return_exceptions=True))[0], MemoryLimitError)


async def test_a_unary_call_beyond_the_limit_is_refused_and_counts_until_grpc_has_ended_it() -> None:
    async def never(_raw: bytes, _context: RpcContext) -> bytes:
        raise AssertionError("it was served")

    service = open_service({"Echo": never}, {})
    size = (
        CALL_BYTES // 2 + 1
    )  # with three times a call's bytes, a call has room, and a request of half of them is over
    transport = GrpcTransport([service], max_request_bytes=size, max_held_bytes=3 * CALL_BYTES)
    context = FakeGrpcContext(b"x" * size, abort_raises=grpc.aio.AbortError())
    with pytest.raises(grpc.aio.AbortError):
        await grpc_handler(service, ECHO, transport).stream_unary(None, context)
    assert context.aborted[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert transport.held.total == CALL_BYTES + size
    context.ended[0](context)
    assert transport.held.total == 0


async def test_a_request_that_stays_incomplete_counts_with_the_largest_size_until_it_is_complete(
    monkeypatch: pytest.MonkeyPatch, wait_until: WaitUntil
) -> None:
    monkeypatch.setattr(incomplete_messages, "SLOW_S", 0.0)
    may_end = asyncio.Event()

    class Slow(FakeGrpcContext):
        async def read(self) -> object:
            await may_end.wait()
            return b"12345"

    async def wait(_raw: bytes, _context: RpcContext) -> bytes:
        await asyncio.Event().wait()
        return b""

    service = open_service({"Echo": wait}, {})
    transport = GrpcTransport([service], max_request_bytes=CALL_BYTES, max_held_bytes=7 * CALL_BYTES)
    serving = asyncio.create_task(grpc_handler(service, ECHO, transport).stream_unary(None, Slow()))
    await wait_until(lambda: transport.held.total == CALL_BYTES + CALL_BYTES)
    may_end.set()
    await turn_loop()
    assert transport.held.total == CALL_BYTES + 5
    serving.cancel()
    await asyncio.wait({serving})


async def test_incomplete_requests_beyond_the_limit_end_and_those_of_another_connection_do_not(
    monkeypatch: pytest.MonkeyPatch, wait_until: WaitUntil
) -> None:
    monkeypatch.setattr(incomplete_messages, "SLOW_S", 0.0)

    async def never(_raw: bytes, _context: RpcContext) -> bytes:
        raise AssertionError("it was served")

    service, size = open_service({"Echo": never}, {}), 10 * CALL_BYTES
    # One connection may hold half of 60. Five calls count as 5 * 11, of which two fit, the other as 11.
    transport = GrpcTransport([service], max_request_bytes=size, max_held_bytes=60 * CALL_BYTES)
    contexts = [FakeGrpcContext(abort_raises=grpc.aio.AbortError(), endless=True) for _ in range(6)]
    contexts[5].peer = lambda: "ipv4:127.0.0.1:2"
    serving = [
        asyncio.create_task(grpc_handler(service, ECHO, transport).stream_unary(None, context)) for context in contexts
    ]
    await wait_until(serving[4].done)
    await turn_loop()
    assert [task.done() for task in serving] == [False, False, True, True, True, False]
    assert contexts[2].aborted[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    for task in serving:
        task.cancel()
    await asyncio.gather(*serving, return_exceptions=True)


async def test_grpc_reads_as_many_requests_as_can_have_an_eighth_of_the_limit_and_our_handlers_the_others() -> None:
    async def echo(raw: bytes, _context: RpcContext) -> bytes:
        return raw

    service = open_service({"Echo": echo}, {})
    transport = GrpcTransport([service], max_request_bytes=100, max_held_bytes=16 * 100 + 7 * CALL_BYTES)
    by_grpc = (16 * 100 + 7 * CALL_BYTES) // 800
    handlers = [grpc_handler(service, ECHO, transport) for _ in range(by_grpc + 1)]
    assert [handler.request_streaming for handler in handlers] == [False] * by_grpc + [True]
    assert await handlers[0].unary_unary(b"x", FakeGrpcContext()) == b"x"  # its request has arrived
    more = [grpc_handler(service, ECHO, transport) for _ in range(2)]
    assert [handler.request_streaming for handler in more] == [False, True]
    del handlers[:]  # all the others have ended
    again = [grpc_handler(service, ECHO, transport) for _ in range(by_grpc)]
    assert [handler.request_streaming for handler in again] == [False] * (by_grpc - 1) + [True]


async def test_a_call_without_a_request_is_the_fault_of_its_caller() -> None:
    async def never(_raw: bytes, _context: RpcContext) -> bytes:
        raise AssertionError("it was served")

    context = FakeGrpcContext(abort_raises=grpc.aio.AbortError())
    service = open_service({"Echo": never}, {})
    transport = GrpcTransport([service], max_request_bytes=CALL_BYTES, max_held_bytes=7 * CALL_BYTES)
    with pytest.raises(grpc.aio.AbortError):
        await grpc_handler(service, ECHO, transport).stream_unary(None, context)
    assert context.aborted[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "the call ended without a request")


async def test_a_cancelled_read_keeps_the_memory_that_grpc_writes_to_until_the_call_ends() -> None:
    finished: list[str] = []

    class Slow(FakeGrpcContext):
        async def read(self) -> object:
            try:
                await asyncio.Event().wait()
            finally:
                finished.append("read")
            return b""

    service, context = open_service({}, {"Stream": echo_stream}), Slow()
    serving = asyncio.create_task(grpc_handler(service, STREAM).stream_stream(None, context))
    await turn_loop()
    serving.cancel()
    await asyncio.wait({serving})
    gc.collect()
    assert finished == []
    context.ended[0](context)
    del serving
    gc.collect()  # the task's exception and the frame of the read refer to each other
    assert finished == ["read"]


async def test_a_message_that_cannot_be_read_is_the_fault_of_its_sender() -> None:
    async def read() -> bytes:
        raise grpc.aio.InternalError("decompression failed")

    async def may_read() -> None:
        pass

    context, call = SimpleNamespace(read=read), SimpleNamespace(may_read=may_read, reading=None)
    requests = grpc_transport._Requests(cast("Any", context), cast("Any", call))  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(InvalidRequestError, match="the message cannot be read"):
        await anext(requests)
