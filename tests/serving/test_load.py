"""The load that the scheduler reads, with time and processor time given by hand."""

import math

import pytest

from serving.batching.load import LoadMeter


def meter(cpu_s: float = 0.0) -> LoadMeter:
    return LoadMeter(memory_s=0.1, window_s=0.02, loop_cpu_s=lambda: cpu_s)


def test_the_compute_load_is_an_exponential_mean_with_the_given_memory() -> None:
    load = meter()
    assert load.read(10.0, is_computing=False).compute == 0
    load.record_batch(10.0, 10.1)
    assert load.read(10.1, is_computing=False).compute == pytest.approx(1 - math.exp(-1))
    assert load.read(10.2, is_computing=False).compute == pytest.approx((1 - math.exp(-1)) * math.exp(-1))


def test_a_batch_in_flight_counts_before_it_ends_and_not_twice() -> None:
    load = meter()
    load.record_batch(10.0, 10.1)
    assert load.read(10.2, is_computing=True).compute == pytest.approx(1 - math.exp(-2))
    load.record_batch(10.1, 10.3)  # the batch that was in flight at 10.2
    assert load.read(10.3, is_computing=False).compute == pytest.approx(1 - math.exp(-3))


def test_the_event_loops_load_is_its_processor_time_over_a_window() -> None:
    cpu_s = 3.0
    load = LoadMeter(memory_s=0.1, window_s=0.02, loop_cpu_s=lambda: cpu_s)
    assert load.read(10.0, is_computing=False).event_loop == 0  # no window has ended yet
    cpu_s += 0.03
    assert load.read(10.01, is_computing=False).event_loop == 0
    assert load.read(10.04, is_computing=False).event_loop == pytest.approx(0.75)
    cpu_s += 0.001
    assert load.read(10.05, is_computing=False).event_loop == pytest.approx(0.75)
    assert load.read(10.14, is_computing=False).event_loop == pytest.approx(0.01)
