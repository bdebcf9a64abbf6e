"""What the benchmark of kernels makes of a profile."""

import importlib
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def step_kernels(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("step_kernels")


def test_kernels_are_ranked_by_what_all_their_calls_took(step_kernels: Any) -> None:
    events = [step_kernels.Event(*event) for event in (("dot", 0.25), ("sum", 0.125), ("sum", 0.25), ("one", 0.0625))]
    assert step_kernels.ranked(events) == ["0.375000 s      2 sum", "0.250000 s      1 dot", "0.062500 s      1 one"]


def test_only_the_longest_are_named(step_kernels: Any) -> None:
    events = [step_kernels.Event(f"kernel {index}", float(index)) for index in range(20)]
    assert [line.rpartition(" ")[2] for line in step_kernels.ranked(events)] == [
        str(index) for index in range(19, 11, -1)
    ]


def test_a_profile_without_a_device_is_an_error(step_kernels: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no stream of a device"):
        list(step_kernels.device_events(tmp_path))
