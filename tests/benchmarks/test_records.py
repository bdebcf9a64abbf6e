"""Records are small, and say where their figures come from."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
RESULTS = BENCHMARKS / "results"
MOST_BYTES = 400_000


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Return a function that imports a helper of the benchmarks."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


def test_all_results_together_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in RESULTS.rglob("*") if path.is_file()}
    assert sum(sizes.values()) < MOST_BYTES, f"write summaries, not samples: {sizes}"


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("*.json")), ids=lambda path: path.stem)
def test_a_record_names_its_command_date_and_machine(path: Path) -> None:
    read = json.loads(path.read_text())
    for record in read if isinstance(read, list) else [read]:
        assert record["command"].startswith(("python benchmarks/", "make "))
        assert record["date"].startswith("2026-")
        assert record["machine"]["processor"]
        assert record["machine"]["cores"] > 0


def test_a_record_has_six_digits_and_short_entries_on_one_line(module: Callable[[str], Any]) -> None:
    value = {"a": [1.23456789, 2], "b": {"long": "x" * 110, "none": None}, "c": [0.1 + 0.2, 123456789.0, 7]}
    text = module("_record").dumps(value)
    assert text.splitlines() == [
        "{",
        '  "a": [1.23457, 2],',
        '  "b": {',
        f'    "long": "{"x" * 110}",',
        '    "none": null',
        "  },",
        '  "c": [0.3, 123457000.0, 7]',
        "}",
    ]


def test_a_load_is_summarized_over_its_rounds(module: Callable[[str], Any]) -> None:
    def phase(target: str, rate: float, p50: float, *, rejected: int) -> dict[str, Any]:
        latency = {"calls": 2, "mean": p50, "p50": p50, "p90": p50, "p99": 2 * p50, "max": 3 * p50, "histogram": {}}
        return {
            "load": "many",
            "target": target,
            "plan": {"address": "here:1", "mode": "closed", "seconds": 2.0, "rows": 1, "callers": 32},
            "answered_per_s": rate,
            "server_cpu_share": rate / 100,
            "codes": {"OK": 2, "RESOURCE_EXHAUSTED": rejected},
            "discarded": {},
            "latency_us": latency,
            "rejection_us": None,
            "probes": [[0.0, 10.0, "OK"]],
        }

    compiled = {"load": "many", "target": "compiled call in process", "rows_per_s": 5.0}
    phases = [phase("echo", 100.0, 1.0, rejected=0), compiled, phase("echo", 50.0, 2.0, rejected=3)]
    echo, call = module("_serve_record").load_summaries(phases)
    assert call == {"load": "many", "target": "compiled call in process", "rows_per_s": [5.0]}
    assert echo == {
        "load": "many",
        "target": "echo",
        "plan": {"mode": "closed", "seconds": 2.0, "callers": 32},
        "answered_per_s": [100.0, 50.0],
        "server_cpu_share": [1.0, 0.5],
        "latency_us": {"p50": [1.0, 2.0], "p99": [2.0, 4.0], "max": [3.0, 6.0]},
        "codes": {"OK": 4, "RESOURCE_EXHAUSTED": 3},
        "probe_codes": {"OK": 2},
    }
