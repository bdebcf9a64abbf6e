"""What holds for the batcher whatever arrives, gives up, is late or urgent, and however long a batch takes."""

import asyncio
import dataclasses
import itertools
import math
import threading
from typing import Literal

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from serving.batching.batcher import Batcher
from serving.batching.queue import InferenceResult, QueuedRequest
from serving.batching.scheduler import BatchingPolicy
from serving.engine.engine import Kind
from serving.errors import DeadlinePassedError, OverloadedError
from serving.telemetry.metrics import Metrics

MAX_ROWS = 4
QUEUE_ROWS = 20
QUEUE_AGE_S = 5.0
EXPECTED_S = 1.0


@dataclasses.dataclass(frozen=True)
class Arrival:
    """One request, and what its caller does."""

    rows: int
    kind: Kind
    priority: int
    timeout_s: float | None
    gives_up: Literal["never", "at once", "later"]
    turns: int  # of the event loop before the next request arrives


ARRIVALS = st.lists(
    st.builds(
        Arrival,
        rows=st.integers(1, 9),
        kind=st.sampled_from((Kind.ACT, Kind.SCORE)),
        priority=st.integers(0, 3),
        timeout_s=st.sampled_from((None, None, 0.0, 1.0, 2.5, 20.0)),
        gives_up=st.sampled_from(("never", "never", "at once", "later")),
        turns=st.integers(0, 3),
    ),
    max_size=20,
)


class Recorder:
    """Gives ten times every value. Only its batches move the clock, by the `compute_s` in turn."""

    max_rows = MAX_ROWS
    full_rows = MAX_ROWS // 2

    def __init__(self, compute_s: list[float], max_concurrency: int) -> None:
        self.max_concurrency = max_concurrency
        self._turn = threading.Lock()
        self._compute_s = itertools.cycle(compute_s)
        self.now_s = 0.0
        self.batches: list[tuple[Kind, np.ndarray, float]] = []  # kind, values, when

    def clock(self) -> float:
        return self.now_s

    def compute(self, kind: Kind, rows: np.ndarray) -> np.ndarray:
        with self._turn:
            self.batches.append((kind, rows[:, 0].copy(), self.now_s))
            self.now_s += next(self._compute_s)
        return 10 * rows

    def padding(self, kind: Kind, rows: int) -> int:
        return self.max_rows - rows

    def expected_s(self, kind: Kind, rows: int) -> float:
        assert 1 <= rows <= MAX_ROWS
        return EXPECTED_S


def values(number: int, rows: int) -> np.ndarray:
    """The values of one request, [rows]; no other request has any of them."""
    return 100 * number + np.arange(rows, dtype=np.float32)


# An urgent request of two batches overtakes one that waits, which is then too late.
@example(
    [
        Arrival(4, Kind.ACT, 0, None, "never", 3),
        Arrival(4, Kind.ACT, 0, 2.5, "never", 0),
        Arrival(8, Kind.ACT, 3, None, "never", 0),
    ],
    [2.0],
    1,
)
@given(ARRIVALS, st.lists(st.sampled_from((0.0, 0.5, 2.0, 6.0)), min_size=1, max_size=5), st.integers(1, 3))
@settings(max_examples=200, deadline=None)
def test_every_request_ends_once_in_an_allowed_way_and_no_bound_is_exceeded(
    arrivals: list[Arrival], compute_s: list[float], max_concurrency: int
) -> None:
    engine = Recorder(compute_s, max_concurrency)
    admitted: dict[int, QueuedRequest] = {}
    outcomes: dict[int, InferenceResult | BaseException] = {}
    taken_when_given_up: dict[int, int] = {}

    async def test() -> None:
        registry = CollectorRegistry()
        policy = BatchingPolicy(max_queue_rows=QUEUE_ROWS, max_queue_age_s=QUEUE_AGE_S, max_batch_delay_s=0.0)
        batcher = Batcher(engine, policy=policy, metrics=Metrics(registry).for_policy("p"), clock=engine.clock)

        def give_up(number: int) -> None:
            taken_when_given_up[number] = admitted[number].taken
            batcher.withdraw(admitted[number])

        for number, arrival in enumerate(arrivals):
            rows = values(number, arrival.rows)[:, None]
            try:
                admitted[number] = batcher.admit(
                    rows, kind=arrival.kind, priority=arrival.priority, timeout_s=arrival.timeout_s
                )
            except (OverloadedError, DeadlinePassedError) as error:
                outcomes[number] = error
            if number in admitted and arrival.gives_up == "at once":
                give_up(number)
            for _ in range(arrival.turns):
                await asyncio.sleep(0)
            assert 0 <= batcher.queue_rows <= QUEUE_ROWS
        for number in admitted:
            if arrivals[number].gives_up == "later":
                give_up(number)
        results = [request.result for request in admitted.values()]
        ends = await asyncio.gather(*results, return_exceptions=True)
        outcomes.update(zip(admitted, ends, strict=True))
        assert batcher.queue_rows == 0
        assert await batcher.drain(grace_s=60)
        rejected = sum(
            registry.get_sample_value("kilolayer_rejected_total", {"policy": "p", "reason": reason}) or 0
            for reason in ("queue_full", "queue_age", "deadline_too_short")
        )
        assert rejected == sum(isinstance(end, OverloadedError) for end in outcomes.values())

    asyncio.run(asyncio.wait_for(test(), timeout=120))
    assert set(outcomes) == set(range(len(arrivals)))
    for number, end in outcomes.items():
        _check_outcome(number, end, arrivals[number], is_admitted=number in admitted)
        if isinstance(end, InferenceResult) and max_concurrency == 1:  # else another batch may move the clock meanwhile
            assert end.queue_s < (arrivals[number].timeout_s or math.inf)
    computed = np.concatenate([batch for _, batch, _ in engine.batches] or [np.empty(0)])
    assert len(set(computed.tolist())) == len(computed), "a row was computed twice"
    for number, most in taken_when_given_up.items():
        own = computed[computed // 100 == number]
        assert len(own) == most, "rows of a caller that gave up were computed"
    for kind, batch, _ in engine.batches:
        _check_batch(kind, batch, arrivals)


def _check_outcome(number: int, end: InferenceResult | BaseException, arrival: Arrival, *, is_admitted: bool) -> None:
    if isinstance(end, InferenceResult):
        np.testing.assert_array_equal(end.results[:, 0], 10 * values(number, arrival.rows))  # its own rows, in order
        assert 1 <= end.batch_rows <= MAX_ROWS
    elif isinstance(end, asyncio.CancelledError):
        assert arrival.gives_up != "never"
    elif isinstance(end, DeadlinePassedError):
        assert arrival.timeout_s is not None
        assert is_admitted or arrival.timeout_s == 0
    else:
        assert isinstance(end, OverloadedError)
        assert not is_admitted


def _check_batch(kind: Kind, batch: np.ndarray, arrivals: list[Arrival]) -> None:
    assert 1 <= len(batch) <= MAX_ROWS
    numbers = list(dict.fromkeys((batch // 100).astype(int).tolist()))  # in the order of the batch
    assert {arrivals[number].kind for number in numbers} == {kind}
    assert numbers == sorted(numbers, key=lambda number: (-arrivals[number].priority, number))
    for number in numbers:
        own = batch[batch // 100 == number]
        np.testing.assert_array_equal(own, np.arange(own[0], own[0] + len(own)))  # next to one another, in order
