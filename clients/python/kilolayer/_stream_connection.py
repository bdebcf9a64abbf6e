"""One gRPC stream, from its first request until it ends, and the requests that wait for their replies on it.

Three threads work on a stream. A caller's thread sends a request and waits until it is complete. gRPC's thread takes
requests from the outgoing queue and writes them to the connection. The stream's reader thread receives the replies and
completes their requests, which it finds by sequence number. A request is complete once it has a reply or an error;
a reply that comes later is dropped.
"""

from __future__ import annotations

import functools
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any, Callable

import grpc

from kilolayer._channel import STREAM, Endpoint
from kilolayer._connection import Connection
from kilolayer._forks import forks
from kilolayer._internal import blocks_pb2
from kilolayer._meaning import LATE_REPLY
from kilolayer.errors import BadReply, ClientClosed, KilolayerError
from kilolayer.v1 import policy_pb2

MAX_PENDING = 64  # requests of one stream that a server reads before it has answered the first


class PendingRequest:
    """A request that was sent, or is about to be, and later its reply or error.

    Args:
        message: the request message.
        timeout_s: seconds from now until the reply is too late.
        clock: gives the time in seconds.
    """

    def __init__(
        self,
        message: blocks_pb2.ActRequestBlocks,
        *,
        timeout_s: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.message = message
        self.timeout_s = timeout_s
        self.sent_s: float = clock()
        self.reply: policy_pb2.ActResponse | None = None
        self.arrived_s: float = 0.0
        self.error: KilolayerError | None = None  # in place of a reply
        self.completed: threading.Event = threading.Event()
        self._clock = clock
        self._deadline_s = self.sent_s + timeout_s

    @property
    def is_late(self) -> bool:
        """Whether the deadline has passed."""
        return self._clock() > self._deadline_s

    def remaining_s(self) -> float:
        """Return the seconds until the deadline, at least 0."""
        return max(0.0, self._deadline_s - self._clock())

    def complete(self, reply: policy_pb2.ActResponse) -> bool:
        """Store `reply`, unless the request is complete. Return whether the reply came before the deadline."""
        arrived_s = self._clock()
        if arrived_s > self._deadline_s:
            return False
        if not self.completed.is_set():
            self.reply, self.arrived_s = reply, arrived_s
            self.completed.set()
        return True

    def after_fork(self) -> None:
        """Replace the event, unless the request is complete: a thread of the parent may have held its lock."""
        if not self.completed.is_set():
            self.completed = threading.Event()

    def fail(self, error: KilolayerError) -> None:
        """Store `error`, unless the request is complete."""
        if not self.completed.is_set():
            self.error = error
            self.completed.set()


class StreamConnection:
    """One gRPC stream, opened immediately. When it ends, every pending request fails.

    Args:
        open_stream: ActStream on the client's channel.
        endpoint: the server; gives the exceptions for failures.
    """

    def __init__(self, open_stream: Callable[..., Any], endpoint: Endpoint) -> None:
        self.generation: int = forks.generation  # of the process that has its threads
        self._endpoint = endpoint
        self._changed = threading.Condition()
        self._pending: dict[int, PendingRequest] = {}  # by sequence, in the order they were sent
        self._outgoing: queue.SimpleQueue[PendingRequest | None] = queue.SimpleQueue()
        self._closed = False
        self._end: Callable[[PendingRequest], KilolayerError] | None = None
        self._call = open_stream(self._messages(), wait_for_ready=False)
        self._reader = threading.Thread(target=self._read, name="kilolayer-stream", daemon=True)
        try:
            self._reader.start()
        except RuntimeError:  # there can be no more threads
            self._call.cancel()
            self._outgoing.put(None)
            raise

    @property
    def ended(self) -> bool:
        """Whether the stream has ended, so that no more replies can come."""
        return self._end is not None

    def send(self, request: PendingRequest) -> None:
        """Send `request` when fewer than 64 are pending. The request fails if that takes until its deadline."""
        with self._changed:
            self._changed.wait_for(self._has_room, timeout=request.remaining_s())
            if self._end is not None:
                request.fail(self._end(request))
            elif not self._has_room():
                request.fail(self._late(request, f"not sent, {MAX_PENDING} requests of the stream wait for replies"))
            else:
                self._pending[request.message.sequence] = request
                self._outgoing.put(request)

    def wait(self, request: PendingRequest) -> None:
        """Wait until `request` is complete. It fails if its deadline passes, and in another process than its own."""
        if self.generation != forks.generation:
            request.after_fork()
            details = "this process was forked after the request was sent, and the reply goes to its parent"
            request.fail(self._failure(request, code=grpc.StatusCode.UNAVAILABLE, details=details))
        if not request.completed.wait(request.remaining_s()):
            with self._changed:
                request.fail(self._late(request, "no reply in time"))

    def close(self) -> None:
        """End the stream. Pending requests fail with ClientClosed."""
        self.end()
        self._reader.join()

    def end(self) -> None:
        """As `close`, without waiting for the threads."""
        self._closed = True
        self._call.cancel()

    def _has_room(self) -> bool:
        return len(self._pending) < MAX_PENDING or self.ended

    def _messages(self) -> Iterator[blocks_pb2.ActRequestBlocks]:
        """Yield the messages that gRPC's thread sends, without those whose deadline has passed."""
        while (request := self._outgoing.get()) is not None:
            if request.remaining_s():
                yield request.message
            else:
                with self._changed:
                    self._remove(request.message.sequence)
                    request.fail(self._late(request, "not sent, the connection did not accept it in time"))

    def _read(self) -> None:
        """Complete requests until the stream ends, then fail the pending ones."""
        end = functools.partial(self._failure, code=grpc.StatusCode.UNAVAILABLE, details="the server ended the stream")
        try:
            for reply in self._call:
                self._receive(reply)
        except grpc.RpcError as error:
            end = functools.partial(self._stream_failure, error)
        except BadReply as error:
            end = functools.partial(_copy, error)
            self._call.cancel()
        finally:
            self._finish(end)

    def _finish(self, end: Callable[[PendingRequest], KilolayerError]) -> None:
        with self._changed:
            self._end = end
            for request in self._pending.values():
                request.fail(end(request))
            self._pending.clear()
            self._changed.notify_all()
        self._outgoing.put(None)

    def _receive(self, reply: policy_pb2.ActResponse) -> None:
        """Complete the request that `reply` belongs to. BadReply if there is none."""
        with self._changed:
            request = self._remove(reply.sequence)
            if request is None:
                raise BadReply(
                    f"Reply rejected: it answers request {reply.sequence}, which is not pending."
                    " The client ended the stream.",
                    status="DATA_LOSS",
                )
            if not request.complete(reply):
                request.fail(self._late(request, LATE_REPLY))

    def _remove(self, sequence: int) -> PendingRequest | None:
        self._changed.notify()
        return self._pending.pop(sequence, None)

    def _late(self, request: PendingRequest, details: str) -> KilolayerError:
        return self._failure(request, code=grpc.StatusCode.DEADLINE_EXCEEDED, details=details)

    def _failure(self, request: PendingRequest, *, code: grpc.StatusCode, details: str) -> KilolayerError:
        return self._endpoint.failure(
            STREAM, code, details=details, request=request.message, timeout_s=request.timeout_s
        )

    def _stream_failure(self, error: grpc.RpcError, request: PendingRequest) -> KilolayerError:
        """Return the exception of `request` when the stream ended with `error`."""
        if self._closed:
            return self._endpoint.stream_closed()
        failure = self._endpoint.rpc_failure(STREAM, error, request=request.message, timeout_s=request.timeout_s)
        if failure.status == grpc.StatusCode.CANCELLED.name and not isinstance(failure, ClientClosed):
            return self._failure(request, code=grpc.StatusCode.UNAVAILABLE, details="the server canceled the stream")
        return failure


def _copy(error: BadReply, _request: PendingRequest) -> BadReply:
    """Return an equal exception, so that each caller raises its own."""
    return BadReply(str(error), status=error.status)


class StreamConnections:
    """The open connection of a stream: opened by its first request, and again once it has ended or after a fork.

    It does not refer to its stream, so that a stream that is dropped without `close` can be collected.
    """

    def __init__(self, channel: Connection, endpoint: Endpoint) -> None:
        self._channel = channel
        self._endpoint = endpoint
        self._current: StreamConnection | None = None
        self._is_closed = False

    def current(self) -> StreamConnection:
        """Return the open connection, or a new one.

        Raises:
            ClientClosed: the stream or its client was closed.
            RuntimeError: gRPC does not work in this process, which was forked.
        """
        with forks.lock:
            self._endpoint.require_open(STREAM)
            if self._is_closed:
                raise self._endpoint.stream_closed()
            self.leave()
            if self._current is None or self._current.ended:
                self._current = self._connect()
            return self._current

    def close(self) -> None:
        """End the connection, unless it belongs to another process. Pending requests fail with ClientClosed."""
        with forks.lock:
            self._is_closed = True
            self.leave()
            current, self._current = self._current, None
        if current is not None:
            current.close()

    @property
    def is_open(self) -> bool:
        """Whether the connection is open in this process. Takes no lock."""
        current = self._current
        if current is None or current.generation != forks.generation or current.ended:
            return False
        return not self._endpoint.closed.is_set()

    def drop(self) -> None:
        """As `close`, without waiting for the threads."""
        with forks.lock:
            current, self._current = self._current, None
        if current is not None:
            current.end()

    def _connect(self) -> StreamConnection:
        try:
            return StreamConnection(self._channel.channel(STREAM).act_stream, self._endpoint)
        except ValueError:  # gRPC raises it if another thread has just closed the channel
            self._endpoint.require_open(STREAM)
            raise

    def leave(self) -> bool:
        """Let go of a connection that belongs to the parent of this process. Return whether there was one."""
        if self._current is None or self._current.generation == forks.generation:
            return False
        forks.abandon(self._current)
        self._current = None
        return True
