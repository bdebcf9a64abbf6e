"""What another version would have done: which rows are compared, how far its actions are, and when there is no time."""

import asyncio
import logging
import threading

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from serving.engine.engine import Kind
from serving.policies.shadow import Shadow
from serving.telemetry.metrics import Metrics, ShadowMetrics
from tests.serving.conftest import FakeEngine, wait_until
from tests.serving.fakes import turn_loop

ROWS = np.array([[1, 2], [3, 4], [5, 6]], np.float32)  # FakeEngine gives [3, 30], [7, 70] and [11, 110]


class Bench:
    """A shadow of every row on a FakeEngine for 3 rows."""

    def __init__(self, share: float = 1.0, seed: int = 0) -> None:
        self.engine = FakeEngine(3)
        self.busy = False
        self.collectors = CollectorRegistry()
        self.shadow = Shadow(
            self.engine,
            name="maze@2000",
            share=share,
            is_busy=lambda: self.busy,
            metrics=ShadowMetrics(Metrics(self.collectors), "maze"),
            random=np.random.default_rng(seed),
        )

    def rows(self, outcome: str) -> float | None:
        return self.collectors.get_sample_value("kilolayer_shadow_rows_total", {"policy": "maze", "outcome": outcome})

    def outcomes(self) -> list[float | None]:
        return [self.rows(outcome) for outcome in ("compared", "dropped", "failed")]

    def distances(self, most: str) -> float | None:
        """The number of rows with a distance of at most `most`."""
        return self.collectors.get_sample_value("kilolayer_shadow_distance_bucket", {"policy": "maze", "le": most})

    async def until_idle(self) -> None:
        await wait_until(lambda: len(asyncio.all_tasks()) == 1)


async def test_the_distance_is_the_largest_difference_of_a_row() -> None:
    bench = Bench()
    bench.shadow.compare(ROWS, np.array([[3, 30.25], [6.5, 70.25], [11, 110]], np.float32))  # 0.25, 0.5 and 0 away
    await bench.until_idle()
    assert bench.engine.batches == [ROWS.tolist()]
    assert bench.engine.kinds == [Kind.ACT]
    assert [bench.distances(most) for most in ("0.0005", "0.2", "0.5", "2.0", "+Inf")] == [1, 1, 3, 3, 3]
    assert bench.collectors.get_sample_value("kilolayer_shadow_distance_sum", {"policy": "maze"}) == 0.75
    assert bench.outcomes() == [3, 0, 0]


async def test_rows_are_dropped_while_the_live_version_is_busy() -> None:
    bench = Bench()
    bench.busy = True
    bench.shadow.compare(ROWS, ROWS)
    assert bench.outcomes() == [0, 3, 0]
    assert bench.engine.batches == []
    bench.busy = False
    bench.shadow.compare(ROWS[:1], ROWS[:1])
    await bench.until_idle()
    assert bench.outcomes() == [1, 3, 0]


async def test_one_sample_is_computed_at_a_time_at_the_lowest_priority() -> None:
    bench, names = Bench(), list[str]()
    compute = bench.engine.compute

    def compute_and_note(kind: Kind, rows: np.ndarray) -> np.ndarray:
        names.append(threading.current_thread().name)
        return compute(kind, rows)

    bench.engine.compute = compute_and_note
    bench.engine.hold()
    bench.shadow.compare(ROWS[:2], ROWS[:2])
    await turn_loop()
    bench.shadow.compare(ROWS[:1], ROWS[:1])
    assert bench.outcomes() == [0, 1, 0]
    bench.engine.release()
    await bench.until_idle()
    bench.shadow.compare(ROWS[:1], ROWS[:1])
    await bench.until_idle()
    assert bench.outcomes() == [3, 1, 0]
    assert names == ["background", "background"]


async def test_rows_beyond_the_largest_batch_are_dropped() -> None:
    bench = Bench()
    five = np.concatenate([ROWS, ROWS[:2]])
    bench.shadow.compare(five, five)
    await bench.until_idle()
    assert bench.engine.batches == [ROWS.tolist()]
    assert bench.outcomes() == [3, 2, 0]


async def test_a_failure_is_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.engine.failure = RuntimeError("device gone")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            bench.shadow.compare(ROWS[:2], ROWS[:2])
            await bench.until_idle()
    assert bench.outcomes() == [0, 0, 4]
    assert caplog.messages == [
        "the shadow maze@2000 gave no action: the computation failed: device gone; further failures are only counted"
    ]
    bench.engine.failure = None
    bench.shadow.compare(ROWS, ROWS)
    await bench.until_idle()
    assert bench.outcomes() == [3, 0, 4]


async def test_rows_without_a_finite_action_are_failures(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    with caplog.at_level(logging.WARNING):
        bench.shadow.compare(np.array([[np.nan, 0], [3, 4]], np.float32), np.array([[0, 0], [7, 70]], np.float32))
        await bench.until_idle()
    assert bench.outcomes() == [1, 0, 1]
    assert bench.distances("0.0005") == 1
    assert "an action is NaN or infinite" in caplog.messages[0]


async def test_every_row_is_decided_for_itself_by_the_seed() -> None:
    draws = np.random.default_rng(5).random(8) < 0.5
    assert 0 < draws.sum() < 8
    chosen = Bench(0.5, seed=5).shadow.sample(np.zeros((8, 2), np.float32))
    assert chosen is not None
    assert chosen.tolist() == np.flatnonzero(draws).tolist()
    assert Bench(1e-9).shadow.sample(ROWS) is None
    every = Bench(1.0).shadow.sample(ROWS)
    assert every is not None
    assert every.tolist() == [0, 1, 2]
