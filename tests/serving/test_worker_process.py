"""Worker and supervisor losing each other at any moment: what each notices of the other's end. Nothing is compiled."""

import asyncio
import dataclasses
import errno
import io
import os
import re
import signal
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from serving.config import ServeConfig
from serving.errors import StartupError
from serving.policies.bucket import Bucket
from serving.policies.copies import Copies
from serving.policies.restart import Restart
from serving.policy_settings import BucketUrl, NamedPath, PolicySettings
from serving.telemetry import heartbeat
from serving.workers import supervisor as supervisor_module
from serving.workers import worker, worker_process
from serving.workers.messages import (
    Alive,
    Change,
    Changed,
    Compiled,
    Loaded,
    Message,
    Open,
    Serving,
    Start,
    from_line,
    to_line,
)
from serving.workers.supervisor import Supervisor
from serving.workers.worker_process import WorkerEndedError, WorkerProcess
from tests.serving.batcher_bench import WaitUntil
from tests.serving.sources import policy_source

URL = BucketUrl("gs://bucket/run")
CONFIG = ServeConfig(policies=(Path("a"), Path("b c")), workers=2)
PROGRAM = (
    f"import os, signal, sys\nsys.path[:] = {sys.path!r}\nfrom serving.workers.messages import *\n"
    "def say(message): os.write(1, to_line(message))\n"
)
COMPILE_AND_DIE = "say(Compiled()); os._exit(3)"
COMPILE_AND_HANG = "say(Compiled()); signal.pause()"
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
DIE_UNLOADED = "os.kill(os.getpid(), 9)"
CANNOT_SERVE = "sys.stdin.buffer.readline(); os._exit(1)"


def command(program: str) -> list[str]:
    return [sys.executable, "-c", PROGRAM + program]


def new_supervisor(**arguments: Any) -> Supervisor:
    """A supervisor of two workers. The first one may serve version 2 or 1 of the policy ant."""
    config = dataclasses.replace(CONFIG, metrics_port=0, admin="off")
    sources = [policy_source(Path("a"), name="ant")]
    return Supervisor(config, sources, Restart(None, {}, choices=((2, 1),)), **arguments)


@asynccontextmanager
async def watched_loop() -> AsyncGenerator[None]:
    """The event loop must have nothing to complain about."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, complaint: complaints.append(complaint))
    async with asyncio.timeout(30):
        yield
    assert not complaints


async def start(program: str) -> WorkerProcess:
    each = await WorkerProcess.start(command=command(program))
    each.load(CONFIG, sources=(), choices=(), cores=())
    return each


@pytest.mark.parametrize(
    "message",
    [
        Start(dataclasses.replace(CONFIG, max_batch_delay_s=0.1), (), choices=((3,), (5, 4)), cores=(0, 2)),
        Start(CONFIG, (policy_source(Path("a")), policy_source(Path("b"), wanted=3)), choices=(), cores=()),
        Start(
            dataclasses.replace(CONFIG, policies=(URL, NamedPath("maze", URL))),
            (policy_source(Path("a"), given=Path("a/3"), copies=Copies(Bucket(URL), Path("a"))),),
            choices=(),
            cores=(),
        ),
        Start(dataclasses.replace(CONFIG, log_rows=(0.01, Path("rows"))), (), choices=(), cores=()),
        Start(
            dataclasses.replace(
                CONFIG,
                policies=(Path("a=b"), NamedPath("maze", Path("c=d"))),
                versions=("maze=best",),
                follow=True,
                state_dir=Path("state"),
                config=Path("server.toml"),
                policy_settings=(PolicySettings(name="maze", versions=3, max_batch_delay_s=0.5),),
            ),
            (),
            choices=((3,),),
            cores=(),
        ),
        Open(),
        Change(1, "prepare", "maze", 2),
        Changed(1),
        Changed(2, refused="hash", problem="it is damaged"),
        Loaded({"ant": 3}),
        Compiled(),
        Changed(3, problem="\u00e9\n"),
        Alive(),
    ],
)
def test_a_message_is_one_line_and_reads_back_as_it_was(message: Message) -> None:
    line = to_line(message)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert from_line(line) == message


async def test_a_worker_gets_its_configuration_and_its_messages_arrive() -> None:
    program = """
start = from_line(sys.stdin.buffer.readline())
(choices,) = start.choices
cores, policies = sum(start.cores), len(start.config.policies) + len(start.sources)
say(Loaded({"a": choices[0], "b": choices[1], "c": cores, "d": start.config.workers, "e": policies}))
sys.stdin.buffer.readline()
say(Serving())
signal.pause()
"""
    async with watched_loop():
        each = await WorkerProcess.start(command=command(program))
        each.load(CONFIG, sources=[policy_source(Path("a"))], choices=[[7, 6]], cores=(1, 4))
        assert await each.loaded() == Loaded({"a": 7, "b": 6, "c": 5, "d": 2, "e": 3})
        assert not each.serves
        assert await each.open() == Serving()
        assert each.serves
        each.terminate()
        assert await each.ended() == -signal.SIGTERM
        assert not each.serves
        each.terminate()  # harmless
        each.kill()


@pytest.mark.parametrize(
    "noise",
    [
        r"b'A library says hello\n'",
        r"b'\n\xff\xfe\n[1]\n{}\n5\n'",
        r"""b'{"type": "Ready"}\n{"type": "Loaded"}\n{"type": ["Loaded"]}\n'""",
        "to_line(Open()) + to_line(Loaded((1,))) * 2",
        r"b'x' * 200_000 + b'\n'",
    ],
)
async def test_a_line_that_is_not_a_message_is_logged_and_skipped(noise: str, caplog: pytest.LogCaptureFixture) -> None:
    async with watched_loop():
        noisy = await start(f"sys.stdout.buffer.write({noise}); sys.stdout.flush(); say(Compiled()); signal.pause()")
        await noisy.compiled()
        noisy.kill()
        assert await noisy.ended() == -signal.SIGKILL
    assert f"worker {noisy.pid} wrote a line that is not a message" in caplog.text


async def test_a_worker_that_dies_before_it_is_told_to_open_has_ended() -> None:
    async with watched_loop():
        dying = await start(COMPILE_AND_DIE)
        await dying.compiled()
        assert await dying.ended() == 3
        with pytest.raises(WorkerEndedError, match=f"worker {dying.pid} ended with exit code 3"):
            await dying.open()
        assert not dying.serves


async def test_a_worker_that_dies_before_it_reads_that_it_may_open_has_ended() -> None:
    async with watched_loop():
        deaf = await start(COMPILE_AND_HANG)
        await deaf.compiled()
        opening = asyncio.create_task(deaf.open())
        await asyncio.sleep(0)
        deaf.kill()
        with pytest.raises(WorkerEndedError, match=f"worker {deaf.pid} ended by signal {signal.SIGKILL.value}"):
            await opening


async def test_a_worker_opens_when_told_and_stops_when_its_supervisor_is_gone() -> None:
    read_end, write_end = os.pipe()
    received, stop = asyncio.Queue[Open | Change](), asyncio.Event()
    change = Change(7, "switch", "maze", 2)
    with os.fdopen(read_end, "rb", buffering=0) as from_supervisor:
        loop = asyncio.get_running_loop()
        listening = asyncio.create_task(asyncio.to_thread(worker.listen, from_supervisor, loop, received, stop))
        os.write(write_end, to_line(Open()) + to_line(change) + b'{"type": "Ch')  # the end is cut off
        assert await asyncio.wait_for(received.get(), timeout=10) == Open()
        assert await asyncio.wait_for(received.get(), timeout=10) == change
        assert not stop.is_set()
        os.close(write_end)
        await asyncio.wait_for(stop.wait(), timeout=10)
        await listening


async def test_a_worker_that_ends_while_its_supervisor_does_logs_no_traceback() -> None:
    read_end, write_end = os.pipe()
    os.close(write_end)
    ended = asyncio.new_event_loop()
    ended.close()
    with os.fdopen(read_end, "rb", buffering=0) as from_supervisor:
        worker.listen(from_supervisor, ended, asyncio.Queue(), asyncio.Event())  # in a thread, it would log an error


def test_a_worker_whose_supervisor_died_before_it_said_what_to_serve_stops(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker, "log_to_stderr", lambda *_, **__: None)  # the test's own log stays as it is
    for received in (b"", to_line(Start(CONFIG, (), choices=(), cores=()))[:-5]):
        assert worker.run_worker(io.BytesIO(received), io.BytesIO()) == 0
    assert caplog.messages == ["the supervisor process is gone; stopping"] * 2


def test_a_worker_that_cannot_reach_its_supervisor_stops() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    stop = asyncio.Event()
    with os.fdopen(write_end, "wb", buffering=0) as to_supervisor:
        worker.send(to_supervisor, Compiled(), stop)
    assert stop.is_set()
    pipe, alive = io.BytesIO(), asyncio.Event()
    worker.send(pipe, Compiled(), alive)
    assert pipe.getvalue() == to_line(Compiled())
    assert not alive.is_set()


async def test_a_supervisor_that_reads_nothing_does_not_block_its_worker() -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    stop = asyncio.Event()
    with os.fdopen(write_end, "wb", buffering=0) as to_supervisor, os.fdopen(read_end, "rb"):
        while to_supervisor.write(bytes(4096)):
            pass
        beating = asyncio.create_task(worker.beat(to_supervisor, stop))
        await asyncio.sleep(0.01)
        assert not stop.is_set()
        beating.cancel()


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
        assert problem() == ""
        os.kill(started[1].pid, signal.SIGSTOP)
        await wait_until(lambda: bool(problem()))
        assert re.fullmatch(rf"worker {started[1].pid} has not responded for [0-9]+ s", problem())
        os.kill(started[1].pid, signal.SIGCONT)
        await wait_until(lambda: not problem())
        time.sleep(1.1)  # noqa: ASYNC251  blocks the supervisor's event loop
        assert problem().startswith("the supervisor's event loop has not responded for 1 s")
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

    async def run() -> int:
        running = asyncio.create_task(new_supervisor().run())
        await wait_until(lambda: [each.serves for each in started] == [True, True])
        started[0].kill()
        await wait_until(lambda: [each.serves for each in started] == [False, True, True])
        os.kill(os.getpid(), signal.SIGTERM)
        return await running

    assert asyncio.run(run()) == 0
    lines = [line for line in caplog.messages if line.startswith("cannot start a worker: too little memory or too few")]
    assert len(lines) == 3
