"""AsyncPolicyClient: `PolicyClient` for programs that run on asyncio.

Any number of tasks of one event loop may share a client. Canceling a task that awaits a call cancels the call. A client
belongs to the event loop of its first call, which opens the connection: gRPC never answers calls from another loop.
"""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

import grpc
from numpy.typing import ArrayLike

from kilolayer._access import TlsSetting
from kilolayer._async_connection import AsyncConnection
from kilolayer._channel import READY_POLL_S, Endpoint
from kilolayer._reaper import reaper
from kilolayer._requests import Request, RequestFactory, Response
from kilolayer._responses import Action, PolicyDescription, PolicyListing, ReportStatus, Score
from kilolayer._token import TokenSource
from kilolayer.errors import DeadlineExceeded, KilolayerError, Unavailable

if TYPE_CHECKING:
    from typing_extensions import Self


class AsyncPolicyClient:
    """A client with the arguments and methods of `PolicyClient`, without `stream`.

    It belongs to the event loop of its first call. In another event loop, its methods raise RuntimeError: make a client
    in each loop. Close it when done, in its loop, or use it in an `async with` statement. After a fork, a client that
    was used before it raises RuntimeError in the child: make one there.
    """

    def __init__(
        self,
        address: str,
        *,
        policy: str = "",
        version: str | int = "",
        timeout_s: float = 1.0,
        robot_id: str = "",
        tls: TlsSetting = None,
        token: TokenSource | None = None,
        server_name: str | None = None,
    ) -> None:
        self._endpoint = Endpoint(address, timeout_s=timeout_s, tls=tls, token=token, server_name=server_name)
        self._requests = RequestFactory(policy, version, robot_id=robot_id)
        self._connection = AsyncConnection(self._endpoint)
        reaper.watch(self, self._connection, name=f"an AsyncPolicyClient of {self._endpoint.address}")

    async def act(
        self,
        state: ArrayLike,
        goal: ArrayLike,
        *,
        seed: int | None = None,
        best_of: int | None = None,
        priority: int = 0,
        timeout_s: float | None = None,
        sequence: int | None = None,
    ) -> Action:
        """As `PolicyClient.act`."""
        request = self._requests.act(state, goal, seed=seed, best_of=best_of, priority=priority, sequence=sequence)
        return await self._call(request, timeout_s)

    async def score(
        self,
        state: ArrayLike,
        action: ArrayLike,
        *,
        goal: ArrayLike,
        priority: int = 0,
        timeout_s: float | None = None,
        sequence: int | None = None,
    ) -> Score:
        """As `PolicyClient.score`."""
        request = self._requests.score(state, action, goal=goal, priority=priority, sequence=sequence)
        return await self._call(request, timeout_s)

    async def report(
        self,
        episode: int,
        *,
        version: str | int,
        reached: bool,
        time_at_goal: int = 0,
        timeout_s: float | None = None,
    ) -> ReportStatus:
        """As `PolicyClient.report`."""
        request = self._requests.report(episode, version=version, reached=reached, time_at_goal=time_at_goal)
        return await self._call(request, timeout_s)

    async def describe(self, *, timeout_s: float | None = None) -> PolicyDescription:
        """As `PolicyClient.describe`."""
        return await self._call(self._requests.describe(), timeout_s)

    async def list_policies(self, *, timeout_s: float | None = None) -> tuple[PolicyListing, ...]:
        """As `PolicyClient.list_policies`."""
        return await self._call(self._requests.list_policies(), timeout_s)

    async def wait_until_ready(self, timeout_s: float) -> PolicyDescription:
        """As `PolicyClient.wait_until_ready`."""
        deadline_s = time.monotonic() + self._endpoint.timeout_s(timeout_s)
        last_error: KilolayerError | None = None
        while (remaining_s := deadline_s - time.monotonic()) > 0:
            try:
                return await self._call(self._requests.describe(), remaining_s)
            except Unavailable as error:
                last_error = error
            except DeadlineExceeded as error:
                last_error = last_error or error
            await asyncio.sleep(min(READY_POLL_S, max(0.0, deadline_s - time.monotonic())))
        raise self._endpoint.not_ready(timeout_s, last_error) from last_error

    async def close(self) -> None:
        """As `PolicyClient.close`. RuntimeError in another event loop than its own, unless that loop is closed."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(self, request: Request[Response], timeout_s: float | None) -> Response:
        """As `PolicyClient._call`."""
        endpoint, method = self._endpoint, request.method
        limit_s = endpoint.timeout_s(timeout_s)
        sent_s = time.perf_counter()
        endpoint.require_open(method)
        send = self._connection.methods()[method]
        remaining_s = max(0.0, limit_s - (time.perf_counter() - sent_s))  # opening a channel takes time
        call = send(request.message, timeout=remaining_s, wait_for_ready=False)
        await _done(call)
        if call.cancelled() and endpoint.closed.is_set():
            raise endpoint.client_closed(method)
        try:
            reply = await call
        except grpc.RpcError as error:
            raise endpoint.rpc_failure(method, error, request=request.message, timeout_s=limit_s) from error
        response = request.read(reply, time.perf_counter() - sent_s)
        if time.perf_counter() - sent_s > limit_s:  # the event loop was late to take the reply, or to read it
            raise endpoint.late_reply(method, request=request.message, timeout_s=limit_s)
        return response


async def _done(call: Any) -> None:
    """Wait until `call` is done; cancel it if the current task is canceled.

    Awaiting the call itself raises CancelledError in both cases: if the task was canceled, and if closing the channel
    ended the call. Before Python 3.11 a task cannot tell which.
    """
    done = asyncio.get_running_loop().create_future()
    call.add_done_callback(lambda _: done.done() or done.set_result(None))
    try:
        await done
    except asyncio.CancelledError:
        call.cancel()
        raise
