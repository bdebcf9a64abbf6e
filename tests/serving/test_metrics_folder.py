"""The sums of the workers' metrics. Another process writes them, as a worker does."""

import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

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
