"""The metrics of a supervisor, and the files of metrics of workers that never served. Nothing is compiled."""

import asyncio
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from serving.errors import StartupError
from serving.workers import worker_process
from serving.workers.all_workers import AllWorkers
from serving.workers.worker_process import WorkerProcess
from tests.serving.batcher_bench import WaitUntil
from tests.serving.test_supervisor import (
    DIE_LOADED,
    DIE_UNLOADED,
    SERVE,
    health,
    new_supervisor,
    supervise,
    supervise_until,
)
from tests.serving.worker_programs import command

SERVE_AFTER_REFUSALS = SERVE.replace('Loaded({"ant": 1})', 'Loaded({"ant": 1}, ("hash", "missing", "hash"))')


def supervise_replacement(
    program: str, monkeypatch: pytest.MonkeyPatch, folder: Path, wait_until: WaitUntil, *, tried: Callable[[], bool]
) -> int:
    """Supervise two workers, of which one dies; its replacement runs `program`. Stop the supervisor once `tried`.

    Returns:
        The exit code.
    """
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(folder))
    start_worker, started = WorkerProcess.start, list[WorkerProcess]()

    async def start_fake() -> WorkerProcess:
        started.append(await start_worker(command=command(SERVE if len(started) < 2 else program)))
        return started[-1]

    monkeypatch.setattr(worker_process.WorkerProcess, "start", start_fake)

    return asyncio.run(supervise_until(tried, started, wait_until))


def test_refusals_before_the_first_version_was_found_count_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wait_until: WaitUntil
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    start_worker = WorkerProcess.start

    async def start_fake() -> WorkerProcess:
        return await start_worker(command=command(SERVE_AFTER_REFUSALS))

    monkeypatch.setattr(worker_process.WorkerProcess, "start", start_fake)
    supervisor = new_supervisor()
    collectors = supervisor._collectors  # pyright: ignore[reportPrivateUsage]

    async def run() -> None:
        running = asyncio.create_task(supervisor.run())
        await wait_until(lambda: health(supervisor) == 200)
        os.kill(os.getpid(), signal.SIGTERM)
        await running

    asyncio.run(run())
    counted = [
        collectors.get_sample_value("kilolayer_bundles_rejected_total", {"reason": reason})
        for reason in ("hash", "missing")
    ]
    assert counted == [2, 1]


WRITE_METRICS = """
for kind in ("counter", "histogram", "gauge_livesum"):
    open(f"{os.environ['PROMETHEUS_MULTIPROC_DIR']}/{kind}_{os.getpid()}.db", "w").close()
"""


def test_a_replacement_that_cannot_load_leaves_no_metrics_and_no_exit_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, wait_until: WaitUntil
) -> None:
    join, joined = AllWorkers.join, list[int]()

    async def join_only_two(workers: AllWorkers, worker: WorkerProcess, *, live: Mapping[str, int]) -> None:
        joined.append(worker.pid)
        if len(joined) > 2:
            raise StartupError("too little memory")
        await join(workers, worker, live=live)

    monkeypatch.setattr(AllWorkers, "join", join_only_two)

    def is_removed() -> bool:
        return any("too little memory" in line for line in caplog.messages) and not any(tmp_path.iterdir())

    code = supervise_replacement(WRITE_METRICS + SERVE, monkeypatch, tmp_path, wait_until, tried=is_removed)
    assert code == 0
    assert not list(tmp_path.iterdir())


def test_a_replacement_that_dies_before_it_serves_leaves_no_metrics(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, wait_until: WaitUntil
) -> None:
    code = supervise_replacement(
        WRITE_METRICS + DIE_LOADED,
        monkeypatch,
        tmp_path,
        wait_until,
        tried=lambda: any("before it could serve" in line for line in caplog.messages),
    )
    assert code == 0
    assert not list(tmp_path.iterdir())


def test_a_first_worker_that_dies_before_it_serves_leaves_no_metrics(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    programs = [WRITE_METRICS + DIE_UNLOADED, SERVE]
    code, _ = supervise(programs, monkeypatch, tmp_path, until=lambda statuses: 200 in statuses)
    assert code == 0
    assert not list(tmp_path.iterdir())
