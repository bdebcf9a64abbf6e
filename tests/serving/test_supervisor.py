"""What the supervisor does when workers die, stop or cannot start. Nothing is compiled."""

import asyncio
import dataclasses
import errno
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving.errors import StartupError
from serving.policies.restart import RestartPlan
from serving.telemetry import heartbeat
from serving.workers import supervisor as supervisor_module
from serving.workers import worker_process
from serving.workers.messages import Serving
from serving.workers.reload import Reload
from serving.workers.supervisor import Supervisor
from serving.workers.worker_process import WorkerProcess
from tests.serving.batcher_bench import WaitUntil
from tests.serving.sources import policy_source
from tests.serving.worker_programs import CONFIG, command

SERVE_ON_ONLY_AS_THE_FIRST = """
start = from_line(sys.stdin.buffer.readline())
say(Loaded({"ant": 1}))
say(Compiled())
assert from_line(sys.stdin.buffer.readline()) == Open()
say(Serving())
if len(start.choices[0]) > 1:  # as the first worker of all, which finds the version
    signal.pause()
os._exit(3)
"""


SERVE = """
from_line(sys.stdin.buffer.readline())
say(Loaded({"ant": 1}))
say(Compiled())
assert from_line(sys.stdin.buffer.readline()) == Open()
say(Serving())
signal.pause()
"""
SERVE_AND_BEAT = SERVE.replace("signal.pause()", "import time\nwhile True: say(Alive()); time.sleep(0.02)")
DIE_LOADED = """
from_line(sys.stdin.buffer.readline())
say(Loaded({"ant": 1}))
os.kill(os.getpid(), 9)
"""
HANG_UNLOADED = "sys.stdin.buffer.readline(); signal.pause()"
HANG_UNOPENED = SERVE.replace("say(Serving())\n", "")
DIE_UNLOADED = "os.kill(os.getpid(), 9)"
CANNOT_SERVE = "sys.stdin.buffer.readline(); os._exit(1)"


def new_supervisor(**arguments: Any) -> Supervisor:
    """A supervisor of two workers. The first one may serve version 2 or 1 of the policy ant."""
    config = dataclasses.replace(CONFIG, metrics_port=0, admin="off")
    sources = [policy_source(Path("a"), name="ant")]
    reload = Reload(config, sources, lambda: config)
    return Supervisor(config, sources, RestartPlan(None, {}, choices=((2, 1),)), reload=reload, **arguments)


def test_a_stopped_worker_makes_the_server_unready_until_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wait_until: WaitUntil
) -> None:
    monkeypatch.setattr(heartbeat, "SILENT_S", 1.0)
    monkeypatch.setattr(supervisor_module, "BEAT_S", 0.02)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    start_worker, started = WorkerProcess.start, list[WorkerProcess]()

    async def start_fake() -> WorkerProcess:
        started.append(await start_worker(command=command(SERVE_AND_BEAT)))
        return started[-1]

    monkeypatch.setattr(worker_process.WorkerProcess, "start", start_fake)
    supervisor = new_supervisor()
    problem = supervisor._problem  # pyright: ignore[reportPrivateUsage]

    async def run() -> int:
        running = asyncio.create_task(supervisor.run())
        await wait_until(lambda: [each.serves for each in started] == [True, True])
        await wait_until(lambda: not problem())
        os.kill(started[1].pid, signal.SIGSTOP)
        stopped = rf"worker {started[1].pid} has not responded for [0-9]+ s"
        await wait_until(lambda: re.fullmatch(stopped, problem()) is not None)
        os.kill(started[1].pid, signal.SIGCONT)
        await wait_until(lambda: not problem())
        time.sleep(1.1)  # noqa: ASYNC251  blocks the supervisor's event loop
        assert re.match(r"the supervisor's event loop has not responded for [0-9]+ s", problem())
        os.kill(os.getpid(), signal.SIGTERM)
        return await running

    assert asyncio.run(run()) == 0
    assert problem() == "the server is stopping"


def test_after_five_deaths_the_supervisor_gives_up_and_replaces_none_of_those_that_it_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    start_worker = WorkerProcess.start

    async def start_fake() -> WorkerProcess:
        return await start_worker(command=command(SERVE_ON_ONLY_AS_THE_FIRST))

    monkeypatch.setattr(worker_process.WorkerProcess, "start", start_fake)
    clock = iter([0.0, 1.0, 2.0, 3.0, 4.0, 100.0]).__next__  # the last: one that takes long to stop
    with pytest.raises(StartupError, match=r"worker \d+ ended with exit code 3; 5 workers ended within 60 s"):
        asyncio.run(new_supervisor(clock=clock).run())
    replaced = [line for line in caplog.messages if "starting another" in line]
    assert len(replaced) == 4
    assert all("ended with exit code 3" in line for line in replaced)


def health(supervisor: Supervisor) -> int:
    return 503 if supervisor._problem() else 200  # pyright: ignore[reportPrivateUsage]


def supervise(
    programs: list[str], monkeypatch: pytest.MonkeyPatch, folder: Path, *, until: Callable[[list[int]], bool]
) -> tuple[int, list[int]]:
    """Supervise two workers, which run these programs in the order of their starts.

    Args:
        programs: of the workers; the last one is used again and again.
        monkeypatch: of the test.
        folder: for metrics.
        until: is given the statuses of /healthz so far; when it says so, the supervisor is stopped.

    Returns:
        The exit code and the statuses of /healthz.
    """
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(folder))
    start_worker, left, statuses = WorkerProcess.start, list(programs), list[int]()

    async def start_fake() -> WorkerProcess:
        return await start_worker(command=command(left.pop(0) if len(left) > 1 else left[0]))

    monkeypatch.setattr(worker_process.WorkerProcess, "start", start_fake)
    supervisor = new_supervisor()

    async def run() -> int:
        running = asyncio.create_task(supervisor.run())
        while not running.done() and not until(statuses):
            statuses.append(health(supervisor))
            await asyncio.sleep(0.01)
        if not running.done():
            os.kill(os.getpid(), signal.SIGTERM)
        code = await running
        statuses.append(health(supervisor))
        return code

    return asyncio.run(run()), statuses


@pytest.mark.parametrize(
    "programs",
    [
        [DIE_UNLOADED, SERVE],
        [SERVE, DIE_UNLOADED, SERVE],
        [DIE_LOADED, DIE_UNLOADED, DIE_LOADED, SERVE],
    ],
)
def test_a_worker_that_is_killed_before_it_serves_is_started_again(
    programs: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    code, statuses = supervise(programs, monkeypatch, tmp_path, until=lambda statuses: 200 in statuses)
    assert code == 0
    assert sorted(set(statuses)) == [200, 503]
    assert (statuses[0], statuses[-1]) == (503, 503)  # before it serves, and after it was stopped
    again = [
        line for line in caplog.messages if line.endswith("ended by signal 9 before it could serve; starting another")
    ]
    assert len(again) == len(programs) - programs.count(SERVE)
    (ready,) = [line for line in caplog.messages if line.startswith("ready: ")]
    assert ready.endswith("policies=ant@1 workers=2")


def test_a_worker_that_is_killed_five_times_before_it_serves_ends_the_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code, statuses = supervise([DIE_UNLOADED], monkeypatch, tmp_path, until=lambda _: False)
    assert code == 1
    assert set(statuses) == {503}
    assert caplog.messages[-1].endswith("ended by signal 9 before it could serve; see its last line in the log")


def test_a_worker_that_says_that_it_cannot_serve_ends_the_server_at_the_first_try(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code, _ = supervise([CANNOT_SERVE], monkeypatch, tmp_path, until=lambda _: False)
    assert code == 1
    assert not any("starting another" in line for line in caplog.messages)


def test_a_worker_that_hangs_while_it_loads_ends_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(supervisor_module, "LOAD_S", 0.05)
    with pytest.raises(StartupError, match=r"worker \d+ has not loaded and compiled its policies within 0.05 s \("):
        supervise([HANG_UNLOADED], monkeypatch, tmp_path, until=lambda _: False)


async def supervise_until(done: Callable[[], bool], started: list[WorkerProcess], wait_until: WaitUntil) -> int:
    """Kill the first of two workers that serve, stop the supervisor once it is `done`, and return its exit code."""
    running = asyncio.create_task(new_supervisor().run())
    await wait_until(lambda: [each.serves for each in started] == [True, True])
    started[0].kill()
    await wait_until(done)
    os.kill(os.getpid(), signal.SIGTERM)
    return await running


@pytest.mark.parametrize(
    "hang",
    [
        (HANG_UNLOADED, "LOAD_S", "has not loaded and compiled its policies"),
        (HANG_UNOPENED, "_OPEN_S", "has not opened the port"),
    ],
    ids=["loading", "opening"],
)
def test_a_replacement_that_hangs_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    wait_until: WaitUntil,
    hang: tuple[str, str, str],
) -> None:
    program, limit, problem = hang
    monkeypatch.setattr(supervisor_module, "_RETRY_S", 0.01)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    start_worker, started, programs = WorkerProcess.start, list[WorkerProcess](), [SERVE, SERVE, program, SERVE]

    async def start_fake() -> WorkerProcess:
        hangs = programs[len(started)] is program
        monkeypatch.setattr(supervisor_module, limit, 0.05 if hangs else 60.0)
        started.append(await start_worker(command=command(programs[len(started)])))
        return started[-1]

    monkeypatch.setattr(worker_process.WorkerProcess, "start", start_fake)

    def replaced() -> bool:
        return [each.serves for each in started] == [False, True, False, True]

    assert asyncio.run(supervise_until(replaced, started, wait_until)) == 0
    hung = f"worker {started[2].pid} {problem} within 0.05 s (its last line in the log may say why)"
    assert f"a worker cannot serve what the others do: {hung}; starting another in 0.01 s" in caplog.messages


def test_a_worker_that_hangs_when_all_open_the_port_is_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, wait_until: WaitUntil
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    start_worker, open_worker, started = WorkerProcess.start, WorkerProcess.open, list[WorkerProcess]()

    async def start_fake() -> WorkerProcess:
        started.append(await start_worker(command=command(SERVE)))
        return started[-1]

    async def open_fake(each: WorkerProcess) -> Serving:
        if each is started[1]:
            raise TimeoutError  # as after `_OPEN_S`
        return await open_worker(each)

    monkeypatch.setattr(worker_process.WorkerProcess, "start", start_fake)
    monkeypatch.setattr(worker_process.WorkerProcess, "open", open_fake)

    async def run() -> int:
        running = asyncio.create_task(new_supervisor().run())
        await wait_until(lambda: [each.serves for each in started] == [True, False, True])
        os.kill(os.getpid(), signal.SIGTERM)
        return await running

    assert asyncio.run(run()) == 0
    pid = started[1].pid
    assert f"worker {pid} has not opened the port within 60 s (its last line in the log may say why); it is killed" in (
        caplog.messages
    )
    assert f"worker {pid} ended by signal 9; starting another" in caplog.messages


def test_while_no_process_can_be_started_the_other_workers_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, wait_until: WaitUntil
) -> None:
    monkeypatch.setattr(supervisor_module, "_RETRY_S", 0.01)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    start_worker, started, refused = WorkerProcess.start, list[WorkerProcess](), list[int]()

    async def start_fake() -> WorkerProcess:
        if len(started) == 2 and len(refused) < 3:
            refused.append(1)
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        started.append(await start_worker(command=command(SERVE)))
        return started[-1]

    monkeypatch.setattr(worker_process.WorkerProcess, "start", start_fake)

    def replaced() -> bool:
        return [each.serves for each in started] == [False, True, True]

    assert asyncio.run(supervise_until(replaced, started, wait_until)) == 0
    lines = [line for line in caplog.messages if line.startswith("cannot start a worker: too little memory or too few")]
    assert len(lines) == 3
