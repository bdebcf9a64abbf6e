"""PolicyStream: actions for a control loop over one gRPC stream that stays open.

    with client.stream() as stream:
        while running:
            action = stream.act(state, goal, timeout_s=0.02).action

Any number of threads may share a stream. Each reply goes to the call with the same sequence number. When a call's
deadline passes, the call fails, and a later reply to it is dropped. A failure of one request leaves the stream
open. If the stream breaks, its pending requests fail, and the next call opens another. No request is sent twice.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

import grpc
from numpy.typing import ArrayLike

from kilolayer._channel import STREAM, Endpoint
from kilolayer._reaper import reaper
from kilolayer._requests import Request, RequestFactory
from kilolayer._responses import Action
from kilolayer._stream_connection import PendingRequest, StreamConnection, StreamConnections

if TYPE_CHECKING:
    from typing_extensions import Self

_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


class PendingAction:
    """A request that was sent on a stream. `PolicyStream.send` returns it."""

    def __init__(
        self,
        connection: StreamConnection,
        pending: PendingRequest,
        *,
        request: Request[Action],
        endpoint: Endpoint,
        stream: PolicyStream,
    ) -> None:
        self._connection = connection
        self._pending = pending
        self._request = request
        self._endpoint = endpoint
        self._stream = stream  # it must not be collected while the request is pending

    def __repr__(self) -> str:
        """Return the request's number and whether it is pending, answered or failed."""
        pending = self._pending
        state = "pending"
        if pending.completed.is_set():
            failed = pending.reply is None or pending.reply.HasField("failure")
            state = "failed" if failed else "answered"
        return f"<PendingAction {pending.message.sequence}: {state}>"

    def receive(self) -> Action:
        """Wait for the action until the request's deadline, and return it.

        A reply that arrived in time can be received at any later time. Raises as `PolicyStream.act`.
        """
        pending = self._pending
        self._connection.wait(pending)
        if pending.error is not None:
            raise pending.error
        reply = pending.reply
        assert reply is not None, "a complete request has a reply or an error"
        if reply.HasField("failure"):
            raise self._endpoint.failure(
                STREAM,
                _CODES.get(reply.failure.code, grpc.StatusCode.UNKNOWN),
                details=reply.failure.message,
                reason=reply.failure.reason,
                request=pending.message,
                timeout_s=pending.timeout_s,
            )
        return self._request.read(reply, pending.arrived_s - pending.sent_s)

    def require_in_time(self) -> None:
        """Raise DeadlineExceeded if the request's deadline has passed, even if its reply arrived before."""
        pending = self._pending
        if pending.is_late:
            raise self._endpoint.late_reply(STREAM, request=pending.message, timeout_s=pending.timeout_s)


class PolicyStream:
    """Actions over one open stream. `PolicyClient.stream` returns it.

    Close it when done, or use it in a `with` statement. Closing its client closes it too.
    """

    def __init__(
        self, client: object, connections: StreamConnections, *, endpoint: Endpoint, requests: RequestFactory
    ) -> None:
        self._client = client  # it must not be collected before the stream
        self._connections = connections
        self._endpoint = endpoint
        self._requests = requests
        reaper.watch(self, connections, name=f"a PolicyStream of {endpoint.address}")

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
        """Return the action in `state` towards `goal`. The arguments are those of `PolicyClient.act`.

        The timeout is sent with the request, so the server does not compute an action that would be too late. The
        stream numbers its requests itself.

        Raises:
            Unavailable: the stream could not be opened, or it broke; the next call opens another.
            KilolayerError: anything else that `PolicyClient.act` raises.
            ValueError: the timeout is not a positive number.
        """
        pending = self.send(state, goal, seed=seed, best_of=best_of, priority=priority, timeout_s=timeout_s)
        action = pending.receive()
        pending.require_in_time()
        return action

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
        """Send the request of `act` and return immediately; call `receive` on the result to wait for the action.

        While 64 requests are pending, `send` waits for one to complete, until its own deadline. Failures of the
        request, the stream and the server are raised by `receive`.

        Raises:
            InvalidRequest: as `act`; nothing was sent.
            ClientClosed: the stream or its client was closed.
            ValueError: the timeout is not a positive number.
        """
        limit_s = self._endpoint.timeout_s(timeout_s)
        request = self._requests.act(
            state, goal, seed=seed, best_of=best_of, priority=priority, timeout_us=max(1, round(limit_s * 1e6))
        )
        pending = PendingRequest(request.message, timeout_s=limit_s)
        connection = self._connections.current()
        connection.send(pending)
        return PendingAction(connection, pending, request=request, endpoint=self._endpoint, stream=self)

    def close(self) -> None:
        """End the stream. Pending and later calls raise ClientClosed. Closing twice has no effect."""
        self._connections.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
