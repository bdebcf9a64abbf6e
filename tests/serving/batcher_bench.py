"""A batcher around a fake engine, for tests: the result of a row is [sum, 10 * sum]."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import numpy as np
from prometheus_client import CollectorRegistry

from serving.batching.batcher import Batcher
from serving.batching.queue import InferenceResult
from serving.batching.scheduler import BatchingPolicy
from serving.engine.engine import Kind
from serving.telemetry.metrics import Metrics

WaitUntil = Callable[[Callable[[], bool]], Awaitable[None]]


class Engine(Protocol):
    max_rows: int
    full_rows: int
    max_concurrency: int
    batches: list[list[list[float]]]
    kinds: list[Kind]
    failure: BaseException | None
    now_s: float
    compute_s: float
    row_s: float

    def hold(self) -> None: ...
    def release(self) -> None: ...
    def compute(self, kind: Kind, rows: np.ndarray) -> np.ndarray: ...
    def padding(self, kind: Kind, rows: int) -> int: ...
    def expected_s(self, kind: Kind, rows: int) -> float: ...
    def clock(self) -> float: ...


MakeEngine = Callable[..., Engine]


class Bench:
    """A batcher around a fake engine, and the metrics it reports to."""

    def __init__(
        self,
        engine: Engine,
        *,
        max_queue_rows: int = 100,
        max_queue_age_s: float = math.inf,
        max_batch_delay_s: float = 0.0,
    ) -> None:
        self.engine = engine
        self.registry = CollectorRegistry()
        metrics = Metrics(self.registry).for_policy("p")
        batching = BatchingPolicy(
            max_queue_rows=max_queue_rows, max_queue_age_s=max_queue_age_s, max_batch_delay_s=max_batch_delay_s
        )
        self.batcher = Batcher(engine, policy=batching, metrics=metrics, clock=engine.clock)

    def submit(self, *values: float, **options: Any) -> asyncio.Task[InferenceResult]:
        """Submit a request with a one-column row for each value."""
        rows = np.array([[value] for value in values], np.float32)
        return asyncio.create_task(self.batcher.submit(rows, **options))

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"kilolayer_{name}", {"policy": "p", **labels})


async def busy(bench: Bench, wait_until: WaitUntil) -> asyncio.Task[InferenceResult]:
    """Hold the engine in a batch of one row, -1, so that later requests are queued."""
    bench.engine.hold()
    first = bench.submit(-1)
    await wait_until(lambda: len(bench.engine.batches) == 1)
    return first
