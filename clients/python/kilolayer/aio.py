"""AsyncPolicyClient: `PolicyClient` for programs that run on asyncio.

Any number of tasks of one event loop may share a client. Cancelling a task that awaits a call cancels the call.
"""

import asyncio
import time
from types import TracebackType
from typing import Self

import grpc
import grpc.aio
from numpy.typing import ArrayLike

from kilolayer.channel import CHANNEL_OPTIONS, READY_POLL_S, Endpoint, unary_methods
from kilolayer.errors import DeadlineExceeded, KilolayerError, Unavailable
from kilolayer.questions import Answer, Question, Questions
from kilolayer.replies import Action, PolicyDescription, PolicyListing, Score


class AsyncPolicyClient:
    """A client with the arguments and promises of `PolicyClient`. Make it where its event loop runs.

    Close the client when done, or use it in an `async with` statement.
    """

    def __init__(self, address: str, *, policy: str = "", version: str | int = "", timeout_s: float = 1.0) -> None:
        self._endpoint = Endpoint(address, timeout_s=timeout_s)
        self._questions = Questions(policy, version)
        self._channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._methods = unary_methods(self._channel)

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
        question = self._questions.act(state, goal, seed=seed, best_of=best_of, priority=priority, sequence=sequence)
        return await self._ask(question, timeout_s)

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
        question = self._questions.score(state, action, goal=goal, priority=priority, sequence=sequence)
        return await self._ask(question, timeout_s)

    async def describe(self, *, timeout_s: float | None = None) -> PolicyDescription:
        """As `PolicyClient.describe`."""
        return await self._ask(self._questions.describe(), timeout_s)

    async def list_policies(self, *, timeout_s: float | None = None) -> tuple[PolicyListing, ...]:
        """As `PolicyClient.list_policies`."""
        return await self._ask(self._questions.list_policies(), timeout_s)

    async def wait_until_ready(self, timeout_s: float) -> PolicyDescription:
        """As `PolicyClient.wait_until_ready`."""
        deadline_s = time.monotonic() + self._endpoint.limit_s(timeout_s)
        reason: KilolayerError | None = None
        while (remaining_s := deadline_s - time.monotonic()) > 0:
            try:
                return await self._ask(self._questions.describe(), remaining_s, wait_for_connection=True)
            except (Unavailable, DeadlineExceeded) as error:
                reason = error
            await asyncio.sleep(min(READY_POLL_S, max(0.0, deadline_s - time.monotonic())))
        raise self._endpoint.not_ready(timeout_s) from reason

    async def close(self) -> None:
        """As `PolicyClient.close`."""
        self._endpoint.closed.set()
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _ask(
        self, question: Question[Answer], timeout_s: float | None, *, wait_for_connection: bool = False
    ) -> Answer:
        """As `PolicyClient._ask`."""
        endpoint, name = self._endpoint, question.method
        limit_s = endpoint.limit_s(timeout_s)
        endpoint.require_open(name)
        sent_s = time.perf_counter()
        try:
            reply = await self._methods[name](question.request, timeout=limit_s, wait_for_ready=wait_for_connection)
        except grpc.RpcError as error:
            raise endpoint.failure(name, error, limit_s=limit_s) from error
        except asyncio.CancelledError as error:  # what gRPC raises for a call that closing the channel ended
            if endpoint.closed.is_set() and not _is_cancelled():
                raise endpoint.closed_error(name) from error
            raise
        return question.read(reply, time.perf_counter() - sent_s)


def _is_cancelled() -> bool:
    """Whether the current task is being cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
