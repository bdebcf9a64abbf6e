"""The sums of the workers' metrics. Another process writes them, as a worker does."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.multiprocess import MultiProcessCollector

from serving.workers.metrics_folder import WorkersCollector, remove_metrics, write_workers_metrics_to

WORKER = """
import dataclasses, os
from prometheus_client import CollectorRegistry
from serving.telemetry.metrics import Metrics
from tests.samples import policy_spec
metrics = Metrics(CollectorRegistry())
for version in (1, 2):
    metrics.show_live(policy_spec(), version=version)
print(os.getpid())
"""


def test_of_a_policy_only_the_live_version_is_shown_and_a_worker_that_is_removed_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")  # so that it is restored
    write_workers_metrics_to(tmp_path)
    pid = int(subprocess.run([sys.executable, "-c", WORKER], check=True, capture_output=True, text=True).stdout)
    collectors = CollectorRegistry()
    collectors.register(WorkersCollector())

    def versions() -> list[tuple[str, float]]:
        return [
            (sample.labels["version"], sample.value)
            for metric in collectors.collect()
            if metric.name == "kilolayer_policy_info"
            for sample in metric.samples
        ]

    assert versions() == [("2", 1)]
    remove_metrics(pid)
    assert (versions(), list(tmp_path.iterdir())) == ([], [])


def test_files_that_are_removed_during_a_scrape_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    collect, removed = MultiProcessCollector.collect, [FileNotFoundError(), FileNotFoundError()]

    def collect_late(collector: MultiProcessCollector) -> Iterable[Metric]:
        if removed:
            raise removed.pop()
        return collect(collector)

    monkeypatch.setattr(MultiProcessCollector, "collect", collect_late)
    assert list(WorkersCollector().collect()) == []
    assert removed == []
