"""HttpConnection: one connection of an HTTP/1.1 client, in the event loop of the server.

The library h11 parses and checks HTTP, without any input or output (`serving.api.http.transport` says why it is h11).
Everything that a peer can make the server wait for or hold is limited here.

A connection waits for a request, answers it in a task of its own, and waits for the next. What arrives meanwhile stays
in h11's buffer; when more than `max_header_bytes` wait there, the connection is not read from. When the peer closes the
connection, the task is cancelled.
"""

import asyncio
import email.utils
import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import cast

import h11

from serving.api.held_bytes import HeldBytes
from serving.api.http.body import RequestBody, too_large
from serving.api.http.events import HttpEvents, Refusal, refusal
from serving.api.http.exchange import (
    CLOSE,
    Answer,
    Exchange,
    HttpError,
    HttpReply,
    HttpRequest,
    error_reply,
    failure_reply,
)
from serving.api.http.head import read_head
from serving.api.http.limits import CallLater, Droppable, HttpLimits, OneTimer, OpenConnections
from serving.api.http.sending import Sending
from serving.api.open_call import CALL_BYTES, OpenCall
from serving.api.read_gate import ReadGate
from serving.errors import ServingError, UnexpectedError

_LOGGER = logging.getLogger(__name__)


class _Exchange(Exchange):
    """One request of a connection, as the code that answers it sees it."""

    def __init__(self, connection: "HttpConnection", call: OpenCall) -> None:
        self._connection = connection
        self._call = call

    @property
    def peer(self) -> str:
        return self._connection.peer

    async def read_body(self, max_bytes: int) -> bytes:
        if not self._call.has_room:
            await self._call.wait_for_room()
        return await self._connection.read_body(max_bytes, self._call.hold)

    def hold(self, size: int) -> None:
        self._call.hold(size)


class HttpConnection(asyncio.BufferedProtocol, Droppable):
    """One connection.

    Args:
        answer: answers a request.
        open_connections: of the server.
        held: the bytes that the server holds.
        gate: makes calls of connections without room wait.
        limits: of the connection.
        buffer: receives what arrives, for all connections; each copies its part immediately. Its size limits what is
            read at a time.
        events: what is counted and traced.
        call_later: starts a timer, as the method of the event loop.
    """

    def __init__(
        self,
        answer: Answer,
        *,
        open_connections: OpenConnections,
        held: HeldBytes,
        gate: ReadGate,
        limits: HttpLimits,
        buffer: memoryview,
        events: HttpEvents,
        call_later: CallLater,
    ) -> None:
        self._answer = answer
        self._open = open_connections
        self._held = held
        self._gate = gate
        self._limits = limits
        self._buffer = buffer
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.max_header_bytes)
        self._timer = OneTimer(call_later)
        self._task: asyncio.Task[None] | None = None
        self._body: RequestBody | None = None  # while it is read
        self._declared: int | None = 0  # bytes of the body of the request; None: it comes in chunks
        self._is_head = False  # whether the reply has no body
        self._is_paused = self._is_lingering = self._is_draining = self._has_sent_bytes = False
        self.peer = ""

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the first request, or refuse the connection."""
        self._transport = cast("asyncio.Transport", transport)
        self._sending = Sending(self._transport, self._timer, limit_s=self._limits.send_s)
        host, port, *_ = transport.get_extra_info("peername") or ("", 0)
        self.peer = f"http:{host}:{port}"
        if self._open.add(self):
            self._timer.set(self._limits.header_s, self._headers_are_late)
        else:
            cause, problem = Refusal.TOO_MANY_CONNECTIONS, "has too many connections"
            if self._open.is_closed:
                cause, problem = Refusal.STOPPING, "is shutting down"
            self._events.on_refusal(cause)
            self._write(error_reply(503, f"the server {problem}; try again later", CLOSE))
            self.close()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  the library's name
        """Return where to put what arrives."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Parse what has arrived, unless the request before it is still being answered."""
        if self._is_lingering:
            return
        self._http.receive_data(bytes(self._buffer[:nbytes]))
        self._advance()
        # Without reading, nothing says that the peer is gone. So it is read from as long as little is waiting.
        waits = self._task is not None and not self._reads_body
        if waits and not self._is_paused and len(self._http.trailing_data[0]) > self._limits.max_header_bytes:
            self._is_paused = True
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        """The peer has not received everything yet."""
        self._sending.pause()

    def resume_writing(self) -> None:
        """The peer, or the kernel, has received everything."""
        self._sending.resume()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  the library's name
        """Cancel the call whose caller is gone."""
        self._is_lingering = True
        self._timer.clear()
        self._open.remove(self)
        if self._task:
            self._task.cancel()

    # What the server calls.

    def close(self) -> None:
        """Close the connection without a reply."""
        self._is_lingering = True
        self._transport.close()

    def drop(self) -> None:
        """Close the connection without a reply, and cancel its call, to make room for another connection."""
        self._events.on_refusal(Refusal.DROPPED)
        if self._is_waiting and not self._is_lingering:
            self.close()  # as an idle connection is closed
        else:
            self._is_lingering = True
            self.abort()  # closing would wait until the peer has received everything

    def abort(self) -> None:
        """Close the connection, and cancel its call."""
        self._transport.abort()

    def drain(self) -> None:
        """Close the connection when its request is answered; immediately if it has none."""
        self._is_draining = True
        if self._is_waiting:
            self.close()

    # A request.

    @property
    def _is_waiting(self) -> bool:
        """Whether the headers of a request are not complete."""
        return self._task is None and self._http.their_state is h11.IDLE

    @property
    def _reads_body(self) -> bool:
        return self._body is not None and not self._body.done.done()

    def _advance(self) -> None:
        """Process what has arrived, as far as the request that is answered asks for it."""
        while not self._is_lingering and (self._task is None or self._reads_body):
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                self._malformed(error)
                return
            if isinstance(event, h11.Request):
                self._begin(event)
            elif isinstance(event, h11.Data):
                if self._body:
                    self._body.add(event.data, begins_chunk=event.chunk_start)
            elif isinstance(event, h11.EndOfMessage):
                if self._body:
                    self._open.answers(self)
                    self._body.complete()
                    self._body = None
                else:
                    self._next()
            else:
                if event is h11.NEED_DATA:
                    self._needs_data()
                return

    def _needs_data(self) -> None:
        """Read on. From the first byte of a request, its headers must come in time."""
        self._resume_reading()
        if self._is_waiting and not self._has_sent_bytes and self._http.trailing_data[0]:
            self._has_sent_bytes = True
            self._timer.set(self._limits.header_s, self._headers_are_late)

    def _begin(self, event: h11.Request) -> None:
        """Answer a request whose headers have arrived."""
        self._timer.clear()
        self._open.answers(self)
        head = read_head(event)
        self._declared = head.body_bytes
        self._is_head = head.request.method == "HEAD"
        if self._declared == 0:
            self._http.next_event()  # the end of the request
        if head.refusal:
            self._refuse(head.refusal)
            return
        self._task = self._loop.create_task(self._respond(head.request))

    async def _respond(self, request: HttpRequest) -> None:
        call = OpenCall(self._held.connection(self.peer), self._gate, size=CALL_BYTES, on_limit=self._events.on_limit)
        reply = span = None
        try:
            try:
                if self._events.begin_span:
                    span = self._events.begin_span(request)
                reply = await self._answer(request, _Exchange(self, call))
            except asyncio.CancelledError:
                if call.failure is None:
                    raise  # the caller is gone
                task = asyncio.current_task()
                assert task
                task.uncancel()
                reply = failure_reply(call.failure)
            except HttpError as error:
                reply = error.reply
                self._events.on_refusal(refusal(reply.status))
            except ServingError as error:
                error.__traceback__ = None  # those frames hold the request
                reply = failure_reply(error)
            except Exception:
                _LOGGER.exception("%s %.200r failed", request.method, request.target)
                reply = failure_reply(UnexpectedError())
            await self._send(reply)
        finally:
            self._task = self._body = None
            call.end(None)
            if span:
                span.end(reply.status if reply else None)
        self._next()
        self._advance()

    async def read_body(self, max_bytes: int, hold: Callable[[int], None]) -> bytes:
        """Receive the body of the request; `hold` counts its bytes. Errors as of `Exchange.read_body`."""
        if self._declared == 0:
            return b""
        if self._declared is not None and self._declared > max_bytes:
            raise too_large(max_bytes)
        if self._http.they_are_waiting_for_100_continue:
            self._transport.write(self._http.send(h11.InformationalResponse(status_code=100, headers=[])))
        body = self._body = RequestBody(max_bytes, hold)
        self._timer.set(self._limits.body_s, self._check_body)
        self._open.waits(self)
        self._advance()
        try:
            await body.done
        finally:
            self._open.answers(self)
            self._body = None
            self._timer.clear()
        return body.content()

    def _check_body(self) -> None:
        """End a request whose body arrives too slowly."""
        body = self._body
        if body is None:
            return
        if body.is_slow(self._limits.body_bytes):
            body.fail(HttpError(408, "the body of the request came too slowly", CLOSE))
        else:
            self._timer.set(self._limits.body_s, self._check_body)

    async def _send(self, reply: HttpReply) -> None:
        """Send the reply to the present request, and wait until the peer or the kernel has received it."""
        self._write(reply)
        if self._sending.is_incomplete:
            self._open.waits(self)
            try:
                await self._sending.wait()
            finally:
                self._open.answers(self)

    def _write(self, reply: HttpReply) -> None:
        """Write a reply. The connection is closed after it if the rest of the request is not worth reading."""
        if self._transport.is_closing():  # its task learns that in a moment
            return
        is_unread = self._http.their_state is h11.SEND_BODY
        is_large = self._declared is None or self._declared > self._limits.discard_bytes
        # A peer that waits for 100 Continue and gets another reply may send the body or the next request.
        is_unclear = is_large or self._http.they_are_waiting_for_100_continue
        is_last = self._is_draining or self._http.their_state is h11.ERROR or (is_unread and is_unclear)
        headers = [("date", email.utils.formatdate(usegmt=True)), ("content-length", str(len(reply.body)))]
        headers += [*reply.headers, *([CLOSE] if is_last and CLOSE not in reply.headers else [])]
        reason = HTTPStatus(reply.status).phrase.encode()
        content = self._http.send(h11.Response(status_code=reply.status, headers=headers, reason=reason))
        if not self._is_head:
            content += self._http.send(h11.Data(data=reply.body))
        self._transport.write(content + self._http.send(h11.EndOfMessage()))

    def _next(self) -> None:
        """Go on after a reply: with the next request, the rest of a body that was not needed, or the end."""
        if self._is_lingering or self._transport.is_closing():
            return
        ours, theirs = self._http.our_state, self._http.their_state
        if ours is h11.DONE and theirs is h11.SEND_BODY:
            self._open.waits(self)
            self._timer.set(self._limits.body_s, self.close)
        elif ours is h11.DONE and theirs is h11.DONE and not self._is_draining:
            self._http.start_next_cycle()
            self._is_head = False
            self._open.waits(self)
            self._has_sent_bytes = False
            self._timer.set(self._limits.idle_s, self.close)
        elif theirs in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED):
            self.close()
        else:
            self._linger()

    def _malformed(self, error: h11.RemoteProtocolError) -> None:
        """Refuse what is not HTTP, and close the connection."""
        if self._body:
            self._body.fail(HttpError(400, "the body of the request is malformed", CLOSE))
        elif self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            most = self._limits.max_header_bytes
            message = {
                431: f"the headers of a request may have at most {most} bytes",
                501: "the transfer-encoding of the request is not supported",
            }.get(error.error_status_hint, "the request is not HTTP/1.1")
            self._refuse(error_reply(error.error_status_hint, message, CLOSE))
        else:
            self._linger()

    def _headers_are_late(self) -> None:
        """Close a connection whose request does not come, or not completely."""
        if self._has_sent_bytes:
            self._refuse(error_reply(408, "the headers of the request came too slowly", CLOSE))
        else:
            self.close()

    def _refuse(self, reply: HttpReply) -> None:
        """Send a reply outside of a call, and close the connection."""
        self._events.on_refusal(refusal(reply.status))
        try:
            self._write(reply)
        except Exception:  # a bug: without a timer, the connection would stay open
            self.abort()
            raise
        self._linger()

    def _linger(self) -> None:
        """Close the connection once the peer has had time to receive the reply.

        If it were closed while the peer still sends, the peer's kernel would discard the reply.
        """
        self._is_lingering = True
        self._open.lingers(self)
        if self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()
        self._timer.set(self._limits.linger_s, self._transport.abort)
        self._resume_reading()

    def _resume_reading(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()
