"""What the tests of the batcher share: one around a fake engine, whose answers are worked out by hand.

A row's action is [sum, 10 * sum].
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

import numpy as np
from prometheus_client import CollectorRegistry

from serving.batching.batcher import Batcher, Limits
from serving.batching.queue import InferenceResult
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
    def let_go(self) -> None: ...
    def compute(self, kind: Kind, rows: np.ndarray) -> np.ndarray: ...
    def padding(self, kind: Kind, rows: int) -> int: ...
    def expected_s(self, kind: Kind, rows: int) -> float: ...
    def clock(self) -> float: ...


MakeEngine = Callable[..., Engine]


class Bench:
    """A batcher around a fake engine, and the metrics it reports to."""

    def __init__(self, engine: Engine, *, max_queue_rows: int = 100, **limits: float) -> None:
        self.engine = engine
        self.registry = CollectorRegistry()
        metrics = Metrics(self.registry).for_policy("p")
        self.limits = Limits(queue_rows=max_queue_rows, **limits)
        self.batcher = Batcher(engine, limits=self.limits, metrics=metrics, clock=engine.clock)

    def submit(self, *values: float, **options: Any) -> asyncio.Task[InferenceResult]:
        """One call with a one-column row per value."""
        rows = np.array([[value] for value in values], np.float32)
        return asyncio.create_task(self.batcher.submit(rows, **options))

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"kilolayer_{name}", {"policy": "p", **labels})


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, timeout=30))


async def a_while() -> None:
    """Time enough for anything that is going to happen by itself."""
    for _ in range(20):
        await asyncio.sleep(0.001)


async def busy(bench: Bench, wait_until: WaitUntil) -> asyncio.Task[InferenceResult]:
    """Have the engine stuck in a batch of its own, so that whatever is submitted next has to wait."""
    bench.engine.hold()
    first = bench.submit(-1)
    await wait_until(lambda: len(bench.engine.batches) == 1)
    return first
