"""A line: one gRPC stream from its first request to its end, however it ends, and the requests under way on it.

Three threads meet here. A caller's puts a slot into the line and waits for it to be settled. gRPC's own takes the
requests out and sends them. The line's reader receives the replies and settles their slots, by sequence. A slot is
settled once: what comes for it afterwards, such as a late reply, is dropped.
"""

import functools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from kilolayer.channel import STREAM, Endpoint
from kilolayer.errors import BadReply, ClientClosed, KilolayerError
from kilolayer.v1 import blocks_pb2, policy_pb2

UNDER_WAY = 64  # requests of one stream that a server reads before it has answered the first


class Slot:
    """A request and what becomes of it. Times are those of `time.perf_counter`."""

    def __init__(self, request: blocks_pb2.ActRequestBlocks, *, limit_s: float) -> None:
        self.request = request
        self.limit_s = limit_s
        self.sent_s = time.perf_counter()
        self.deadline_s = self.sent_s + limit_s
        self.reply: policy_pb2.ActResponse | None = None
        self.arrived_s = 0.0
        self.error: KilolayerError | None = None  # instead of a reply
        self.settled = threading.Event()

    def remaining_s(self) -> float:
        """Seconds until the deadline, at least 0."""
        return max(0.0, self.deadline_s - time.perf_counter())


class Line:
    """One gRPC stream. It opens at once; once `ended`, it settles every slot as failed.

    Args:
        open_stream: ActStream on the client's channel.
        endpoint: tells what a failure means.
    """

    def __init__(self, open_stream: Callable[..., Any], endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._changed = threading.Condition()
        self._under_way: dict[int, Slot] = {}  # put, and neither answered nor dropped; in order
        self._outgoing: queue.SimpleQueue[Slot | None] = queue.SimpleQueue()
        self._closed = False
        self._end: Callable[[Slot], KilolayerError] | None = None
        self._call = open_stream(self._requests(), wait_for_ready=False)
        self._reader = threading.Thread(target=self._read, name="kilolayer-stream", daemon=True)
        self._reader.start()

    @property
    def ended(self) -> bool:
        """Whether nothing more can come of it."""
        return self._end is not None

    def put(self, slot: Slot) -> None:
        """Send the request of `slot`, once fewer than 64 are under way; settle it as failed if that takes too long."""
        with self._changed:
            self._changed.wait_for(self._has_room, timeout=slot.remaining_s())
            if self._end is not None:
                self._fail(slot, self._end(slot))
            elif not self._has_room():
                self._fail(slot, self._late(slot, f"not sent, {UNDER_WAY} requests of the stream wait for answers"))
            else:
                self._under_way[slot.request.sequence] = slot
                self._outgoing.put(slot)

    def wait(self, slot: Slot) -> None:
        """Wait until `slot` is settled; that it is late settles it too."""
        if not slot.settled.wait(slot.remaining_s()):
            with self._changed:
                self._fail(slot, self._late(slot, "no answer in time"))

    def close(self) -> None:
        """End the stream; whoever waits for an answer gets ClientClosed."""
        self._closed = True
        self._call.cancel()
        self._reader.join()

    def _has_room(self) -> bool:
        return len(self._under_way) < UNDER_WAY or self.ended

    def _requests(self) -> Iterator[blocks_pb2.ActRequestBlocks]:
        """What gRPC's thread sends: no observation that is too old by now."""
        while (slot := self._outgoing.get()) is not None:
            if slot.remaining_s():
                yield slot.request
            else:
                with self._changed:
                    self._forget(slot.request.sequence)
                    self._fail(slot, self._late(slot, "not sent, the connection took no more"))

    def _read(self) -> None:
        """Settle slots until the stream ends, and then those that are left."""
        end = functools.partial(self._failure, code=grpc.StatusCode.UNAVAILABLE, details="the server ended the stream")
        try:
            for reply in self._call:
                self._accept(reply)
        except grpc.RpcError as error:
            end = functools.partial(self._meaning, error)
        except BadReply as error:
            end = functools.partial(_again, error)
            self._call.cancel()
        finally:
            self._finish(end)

    def _finish(self, end: Callable[[Slot], KilolayerError]) -> None:
        with self._changed:
            self._end = end
            for slot in self._under_way.values():
                self._fail(slot, end(slot))
            self._under_way.clear()
            self._changed.notify_all()
        self._outgoing.put(None)

    def _accept(self, reply: policy_pb2.ActResponse) -> None:
        """Settle the slot that `reply` belongs to. BadReply if there is none."""
        arrived_s = time.perf_counter()
        with self._changed:
            slot = self._forget(reply.sequence)
            if slot is None:
                raise BadReply(
                    f"Reply refused: it answers request {reply.sequence}, which does not wait. The stream was ended.",
                    status="DATA_LOSS",
                )
            if arrived_s > slot.deadline_s:
                self._fail(slot, self._late(slot, "the answer came too late"))
            elif not slot.settled.is_set():
                slot.reply, slot.arrived_s = reply, arrived_s
                slot.settled.set()

    def _forget(self, sequence: int) -> Slot | None:
        self._changed.notify()
        return self._under_way.pop(sequence, None)

    def _fail(self, slot: Slot, error: KilolayerError) -> None:
        if not slot.settled.is_set():
            slot.error = error
            slot.settled.set()

    def _late(self, slot: Slot, details: str) -> KilolayerError:
        return self._failure(slot, code=grpc.StatusCode.DEADLINE_EXCEEDED, details=details)

    def _failure(self, slot: Slot, *, code: grpc.StatusCode, details: str) -> KilolayerError:
        return self._endpoint.status_failure(STREAM, code, details=details, limit_s=slot.limit_s)

    def _meaning(self, error: grpc.RpcError, slot: Slot) -> KilolayerError:
        """What it means for `slot` that the stream ended with `error`."""
        if self._closed:
            return self._endpoint.stream_closed()
        failure = self._endpoint.failure(STREAM, error, limit_s=slot.limit_s)
        if failure.status == grpc.StatusCode.CANCELLED.name and not isinstance(failure, ClientClosed):
            return self._failure(slot, code=grpc.StatusCode.UNAVAILABLE, details="the server cancelled the stream")
        return failure


def _again(error: BadReply, _slot: Slot) -> BadReply:
    """One more of the same: each caller raises its own."""
    return BadReply(str(error), status=error.status)
