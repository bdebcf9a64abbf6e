"""Stand-ins for what handlers call: a batcher that does as a test says, and a policy that nobody computes."""

import asyncio
import dataclasses
from pathlib import Path
from typing import Any, cast

import numpy as np

from policy.bundle import Bundle
from policy.spec import PolicySpec
from serving.batching.batcher import Batcher
from serving.batching.queue import InferenceResult, QueuedRequest
from serving.batching.scheduler import BatchingPolicy, Rejection
from serving.engine.engine import Kind
from serving.errors import Reason
from serving.policies.registry import PolicyRegistry, ServedPolicy
from serving.policies.seen_range import SeenRange
from tests.samples import policy_spec

SPEC = policy_spec()
MODEL = SPEC.name
BUNDLE = Bundle(
    Path("policies/1000"), 1000, SPEC, cast("Any", None), cast("Any", None), provenance={}, manifest_sha256=""
)


class FakeBatcher:
    """Admits everything and answers when told; or refuses everything with `failure`."""

    is_overloaded = False

    def __init__(self, failure: BaseException | None = None) -> None:
        self.failure = failure
        self.admitted: list[QueuedRequest] = []
        self.timeouts_s: list[float | None] = []
        self.withdrawn: list[QueuedRequest] = []
        self.is_overloaded = False
        self.policy = BatchingPolicy(max_queue_rows=8192, max_queue_age_s=1.0, max_batch_delay_s=0.002)
        self._arrival = asyncio.Event()

    def admit(
        self,
        rows: np.ndarray,
        *,
        kind: Kind = Kind.ACT,
        priority: int = 0,
        timeout_s: float | None = None,
        connection: str = "",
    ) -> QueuedRequest:
        if self.failure is not None:
            raise self.failure
        result = asyncio.get_running_loop().create_future()
        queued = QueuedRequest(
            rows, kind=kind, queued_s=0, deadline_s=0, priority=priority, result=result, connection=connection
        )
        self.admitted.append(queued)
        self.timeouts_s.append(timeout_s)
        self._arrival.set()
        return queued

    def answer(self, results: np.ndarray, index: int = -1) -> None:
        """Answer the request that was admitted last, or that of `index`."""
        self.admitted[index].result.set_result(InferenceResult(results, queue_s=0.125, compute_s=0.5, batch_rows=8))

    def reject_unread(self, _deadline_s: float, *, connection: str = "") -> Rejection | None:
        return Rejection(Reason.QUEUE_FULL, f"no room for {connection}") if self.is_overloaded else None

    def withdraw(self, queued: QueuedRequest) -> None:
        self.withdrawn.append(queued)

    async def until_admitted(self, count: int) -> None:
        """Wait until `count` requests have been admitted."""
        async with asyncio.timeout(60):
            while len(self.admitted) < count:
                self._arrival.clear()
                await self._arrival.wait()


class AnsweringBatcher(FakeBatcher):
    """Answers each request immediately with zeros."""

    def admit(
        self,
        rows: np.ndarray,
        *,
        kind: Kind = Kind.ACT,
        priority: int = 0,
        timeout_s: float | None = None,
        connection: str = "",
    ) -> QueuedRequest:
        queued = super().admit(rows, kind=kind, priority=priority, timeout_s=timeout_s, connection=connection)
        self.answer(np.zeros((len(rows), 2), np.float32))
        return queued


def policies_of(batcher: FakeBatcher, spec: PolicySpec = SPEC) -> PolicyRegistry:
    """The policy MODEL, with the specification `spec`, served with `batcher`."""
    policies = PolicyRegistry(frozenset({MODEL}), default=MODEL)
    bundle = dataclasses.replace(BUNDLE, spec=spec)
    policies.open([ServedPolicy(bundle, cast("Batcher", batcher), SeenRange(spec))])
    return policies


async def turn_loop() -> None:
    """Let every task of the event loop run until it waits for something that only the test can bring."""
    for _ in range(50):
        await asyncio.sleep(0)
