"""PolicyStream: actions for a control loop over one gRPC stream that stays open.

    with client.stream() as stream:
        while running:
            action = stream.act(state, goal, timeout_s=0.02).action

Any number of threads may share a stream: each reply goes to the call whose number it bears, and never to another. A
call that was not answered in time is over; its reply, should it still come, is dropped. A failure of one request leaves
the stream open. A stream that breaks fails what is under way on it, and the next call opens another. Nothing is sent
twice.
"""

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import grpc
from numpy.typing import ArrayLike

from kilolayer.channel import STREAM, Endpoint
from kilolayer.line import Line, Slot
from kilolayer.questions import Question, Questions
from kilolayer.replies import Action

_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


class PendingAction:
    """A request of a stream that was sent; `PolicyStream.send` makes it."""

    def __init__(self, line: Line, slot: Slot, *, question: Question[Action], endpoint: Endpoint) -> None:
        self._line = line
        self._slot = slot
        self._question = question
        self._endpoint = endpoint

    def receive(self) -> Action:
        """Wait for the action, until the deadline that the request was sent with.

        An answer that arrived in time can be received at any time after. Raises as `PolicyStream.act`.
        """
        slot = self._slot
        self._line.wait(slot)
        if slot.error is not None:
            raise slot.error
        assert slot.reply is not None, "a settled slot has a reply or an error"
        if slot.reply.HasField("failure"):
            failure = slot.reply.failure
            code = _CODES.get(failure.code, grpc.StatusCode.UNKNOWN)
            raise self._endpoint.status_failure(STREAM, code, details=failure.message, limit_s=slot.limit_s)
        return self._question.read(slot.reply, slot.arrived_s - slot.sent_s)


class PolicyStream:
    """Answers `act` over one open stream; `PolicyClient.stream` makes it.

    Close it when done, or use it in a `with` statement; closing its client closes it too.
    """

    def __init__(self, open_stream: Callable[..., Any], endpoint: Endpoint, *, questions: Questions) -> None:
        self._open_stream = open_stream
        self._endpoint = endpoint
        self._questions = questions
        self._changing = threading.Lock()
        self._line: Line | None = None
        self._closed = False

    def act(
        self,
        state: ArrayLike,
        goal: ArrayLike,
        *,
        seed: int | None = None,
        best_of: int | None = None,
        priority: int = 0,
        timeout_s: float | None = None,
    ) -> Action:
        """Ask for the action in `state` towards `goal`; the arguments are those of `PolicyClient.act`.

        The server is told the limit too, and does not compute what would come too late. The stream numbers its
        requests itself.

        Raises:
            Unavailable: the stream could not be opened or broke; the next call opens another.
            KilolayerError: anything else that `PolicyClient.act` raises.
            ValueError: the timeout is not a positive number.
        """
        pending = self.send(state, goal, seed=seed, best_of=best_of, priority=priority, timeout_s=timeout_s)
        return pending.receive()

    def send(
        self,
        state: ArrayLike,
        goal: ArrayLike,
        *,
        seed: int | None = None,
        best_of: int | None = None,
        priority: int = 0,
        timeout_s: float | None = None,
    ) -> PendingAction:
        """Send what `act` sends, and return at once: `receive` of what is returned waits for the action.

        While 64 requests are under way, it waits for room, within the limit. What the server or the connection say
        against the request, `receive` raises.

        Raises:
            InvalidRequest: as `act`; nothing was sent.
            ClientClosed: the stream or its client was closed.
            ValueError: the timeout is not a positive number.
        """
        limit_s = self._endpoint.limit_s(timeout_s)
        question = self._questions.act(
            state, goal, seed=seed, best_of=best_of, priority=priority, timeout_us=max(1, round(limit_s * 1e6))
        )
        slot = Slot(question.request, limit_s=limit_s)
        line = self._current_line()
        line.put(slot)
        return PendingAction(line, slot, question=question, endpoint=self._endpoint)

    def close(self) -> None:
        """End the stream. Calls under way end with ClientClosed, as do later ones; closing twice is harmless."""
        with self._changing:
            self._closed = True
            line, self._line = self._line, None
        if line is not None:
            line.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _current_line(self) -> Line:
        """The open line, or a new one in place of one that ended."""
        with self._changing:
            self._endpoint.require_open(STREAM)
            if self._closed:
                raise self._endpoint.stream_closed()
            if self._line is None or self._line.ended:
                self._line = self._open_line()
            return self._line

    def _open_line(self) -> Line:
        try:
            return Line(self._open_stream, self._endpoint)
        except ValueError:  # what gRPC raises for a channel that another thread closed a moment ago
            self._endpoint.require_open(STREAM)
            raise
