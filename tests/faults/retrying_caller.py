"""A caller with several servers, as a robot's program has: after a failure it sends its next observation to another.

It never sends the same observation twice. Every failure is either a refusal, after which no server has the call, or a
loss: a server may have accepted the call and gave no answer.
"""

import asyncio
import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Self

import grpc
import grpc.aio

from kilolayer.v1 import policy_pb2 as pb
from kilolayer.v1.policy_pb2_grpc import PolicyStub

REFUSALS = frozenset({"draining", "not_ready", "queue_full", "queue_age", "deadline_too_short"})
"""Reasons of a server that did not accept the call."""
_NOT_SENT = ("failed to connect", "connection refused", "connections to all backends failing")
_OPTIONS = (
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 200),
)
_PAUSE_S = 0.01  # after a failure, so that callers without any server do not spin
_PERIOD_S = 0.005  # after an answer


@dataclasses.dataclass
class Outcome:
    """What became of all calls."""

    answered: int = 0
    refused: Counter[str] = dataclasses.field(default_factory=Counter[str])
    lost: Counter[str] = dataclasses.field(default_factory=Counter[str])
    wrong: int = 0  # answers with other bytes than the first
    longest_gap_s: float = 0.0  # between two answers in a row of the same caller


class RetryingCallers:
    """Callers that call every few milliseconds, in an `async with` statement, until `stop`.

    Args:
        addresses: of the servers, which all serve the same policy.
        request: the known request that every call sends.
        count: of callers.
        timeout_s: of each call.
    """

    def __init__(
        self, addresses: Sequence[str], *, request: pb.ActRequest, count: int = 4, timeout_s: float = 120.0
    ) -> None:
        self._addresses = addresses
        self._request = request
        self._count = count
        self._timeout_s = timeout_s
        self._stop = False
        self._expected: list[float] | None = None
        self._changed = asyncio.Condition()
        self.outcome = Outcome()

    async def __aenter__(self) -> Self:
        self._channels = [grpc.aio.insecure_channel(address, options=_OPTIONS) for address in self._addresses]
        stubs: list[Any] = [PolicyStub(channel) for channel in self._channels]
        self._tasks = [asyncio.create_task(self._call(stubs, index)) for index in range(self._count)]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> Outcome:
        """Let every caller finish its present call; return what became of all."""
        self._stop = True
        await asyncio.gather(*self._tasks)
        for channel in self._channels:
            await channel.close()
        return self.outcome

    async def until_answered(self, count: int, *, limit_s: float = 600.0) -> None:
        """Wait until `count` calls were answered, of all since the start."""
        async with asyncio.timeout(limit_s), self._changed:
            await self._changed.wait_for(lambda: self.outcome.answered >= count)

    async def _call(self, stubs: Sequence[Any], index: int) -> None:
        answered_s = time.monotonic()
        while not self._stop:
            try:
                reply = await stubs[index % len(stubs)].Act(self._request, timeout=self._timeout_s)
            except grpc.aio.AioRpcError as error:
                self._count_failure(error)
                index += 1
                await asyncio.sleep(_PAUSE_S)
                continue
            now_s = time.monotonic()
            self.outcome.longest_gap_s = max(self.outcome.longest_gap_s, now_s - answered_s)
            answered_s = now_s
            self.outcome.answered += 1
            action = list(reply.action)
            self._expected = self._expected or action
            self.outcome.wrong += action != self._expected
            async with self._changed:
                self._changed.notify_all()
            await asyncio.sleep(_PERIOD_S)

    def _count_failure(self, error: grpc.aio.AioRpcError) -> None:
        code, details = error.code(), error.details() or ""
        reason = str((error.trailing_metadata() or grpc.aio.Metadata()).get("kilolayer-reason", ""))
        if reason in REFUSALS:
            self.outcome.refused[reason] += 1
        elif code is grpc.StatusCode.UNAVAILABLE and any(text in details.lower() for text in _NOT_SENT):
            self.outcome.refused["not sent"] += 1
        else:
            self.outcome.lost[f"{code.name} {reason} {details[:200]}"] += 1
