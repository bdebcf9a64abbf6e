"""Worker and parent losing each other at any moment: what each notices of the other's end. Nothing is compiled."""

import asyncio
import dataclasses
import os
import signal
import time
from collections.abc import Callable, Coroutine, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from serving.config import ServeConfig
from serving.errors import StartupError
from serving.workers import worker, worker_process
from serving.workers.messages import Compiled, Loaded, Serving
from serving.workers.supervisor import Supervisor
from serving.workers.worker_process import WorkerEndedError, WorkerProcess

CONFIG = ServeConfig(policies=(Path("a"),), workers=2)
Work = Callable[[ServeConfig, Connection, Sequence[int] | None, Sequence[int]], None]


def compile_and_die(_config: ServeConfig, parent: Connection, *_: Any) -> None:
    parent.send(Compiled())
    os._exit(3)


def compile_and_hang(_config: ServeConfig, parent: Connection, *_: Any) -> None:
    parent.send(Compiled())
    time.sleep(60)


def serve_on_only_as_the_first(_config: ServeConfig, parent: Connection, versions: Any, *_: Any) -> None:
    """The first worker of all, which alone is told no versions, serves on."""
    parent.send(Loaded((1,)))
    parent.send(Compiled())
    parent.recv()
    parent.send(Serving("ant@1"))
    if versions is None:
        signal.pause()
    os._exit(3)


def run(meeting: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run `meeting`; the loop must have nothing to complain of."""
    complaints: list[dict[str, Any]] = []

    async def hold() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, complaint: complaints.append(complaint))
        await asyncio.wait_for(meeting(), timeout=30)

    asyncio.run(hold())
    assert not complaints


def start(monkeypatch: pytest.MonkeyPatch, work: Work) -> WorkerProcess:
    monkeypatch.setattr(worker_process, "_work", work)
    return WorkerProcess(CONFIG, versions=None, cores=())


def test_a_worker_that_dies_before_it_is_told_to_open_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    async def meeting() -> None:
        dying = start(monkeypatch, compile_and_die)
        await dying.compiled()
        assert await dying.ended() == 3
        with pytest.raises(WorkerEndedError, match=f"worker {dying.pid} ended with exit code 3"):
            await dying.open()
        assert not dying.serves

    run(meeting)


def test_a_worker_that_dies_before_it_hears_that_it_may_open_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    async def meeting() -> None:
        deaf = start(monkeypatch, compile_and_hang)
        await deaf.compiled()
        opening = asyncio.create_task(deaf.open())
        await asyncio.sleep(0.1)
        deaf.kill()
        with pytest.raises(WorkerEndedError, match=f"worker {deaf.pid} ended by signal {signal.SIGKILL.value}"):
            await opening
        await asyncio.sleep(0.1)  # for whatever its end of the pipe has left to say

    run(meeting)


def test_a_worker_whose_parent_left_without_hearing_it_stops() -> None:
    async def meeting() -> None:
        parent, ours = Pipe()
        ours.send(Compiled())
        parent.close()  # the system says "reset" rather than "end" to whoever was not heard
        stop = asyncio.Event()
        await asyncio.to_thread(worker.listen, ours, asyncio.get_running_loop(), asyncio.Event(), stop)
        await asyncio.wait_for(stop.wait(), timeout=10)

    run(meeting)


def test_a_worker_that_has_nobody_to_tell_stops() -> None:
    parent, ours = Pipe()
    parent.close()
    stop = asyncio.Event()
    worker.tell(ours, Compiled(), stop)
    assert stop.is_set()


@pytest.mark.slow
def test_after_five_deaths_the_parent_gives_up_and_starts_nobody_in_the_place_of_those_it_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setattr(worker_process, "_work", serve_on_only_as_the_first)
    config = dataclasses.replace(CONFIG, metrics=False)
    clock = iter([0.0, 1.0, 2.0, 3.0, 4.0, 100.0]).__next__  # the last: one that takes long to stop
    with pytest.raises(StartupError, match=r"worker \d+ ended with exit code 3, and so 5 within 60 s"):
        asyncio.run(Supervisor(config, clock=clock).run())
    replaced = [line for line in caplog.messages if "starting another" in line]
    assert len(replaced) == 4
    assert all("ended with exit code 3" in line for line in replaced)
