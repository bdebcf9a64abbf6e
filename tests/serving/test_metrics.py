"""Metrics that are collected when they are asked for."""

import os

import pytest
from prometheus_client import CollectorRegistry

from serving.telemetry.metrics import DeviceMemoryCollector, ProcessesCollector


class FakeDevice:
    def __init__(self, number: int, told: dict[str, int] | None) -> None:
        self.id = number
        self._told = told

    def memory_stats(self) -> dict[str, int] | None:
        return self._told


def test_devices_that_tell_of_their_memory_are_shown() -> None:
    registry = CollectorRegistry()
    told = {"bytes_in_use": 5, "bytes_limit": 100, "num_allocs": 7}
    registry.register(DeviceMemoryCollector([FakeDevice(0, None), FakeDevice(3, told)]))
    (family,) = registry.collect()
    assert [(sample.labels, sample.value) for sample in family.samples] == [
        ({"device": "3", "state": "in_use"}, 5),
        ({"device": "3", "state": "limit"}, 100),
    ]


def test_processes_are_summed_and_one_that_is_gone_counts_as_nothing() -> None:
    registry = CollectorRegistry()
    own = os.getpid()
    gone = 2**22 + 1  # above the largest that Linux gives
    registry.register(ProcessesCollector(lambda: [own, gone, own]))
    once = CollectorRegistry()
    once.register(ProcessesCollector(lambda: [own]))
    for name, times in (("process_max_fds", 2), ("process_start_time_seconds", 1)):
        single = once.get_sample_value(name)
        assert single
        assert registry.get_sample_value(name) == times * single
    memory = once.get_sample_value("process_resident_memory_bytes")
    assert memory
    assert registry.get_sample_value("process_resident_memory_bytes") == pytest.approx(2 * memory, rel=0.05)
