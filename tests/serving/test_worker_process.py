"""Worker and supervisor losing each other at any moment: what each notices of the other's end. Nothing is compiled."""

import asyncio
import dataclasses
import io
import os
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from serving.errors import RefusedVersionError
from serving.policies.copies import Copies
from serving.policy_settings import BucketUrl, NamedPath, PolicySettings
from serving.workers import worker
from serving.workers.line_pipe import LinePipe
from serving.workers.messages import (
    Alive,
    Answered,
    Change,
    Changed,
    Compiled,
    Counted,
    Loaded,
    Message,
    Open,
    Reported,
    Serving,
    Start,
    from_line,
    to_line,
)
from serving.workers.worker_process import WorkerEndedError, WorkerProcess
from tests.serving.decisions import FakeHost
from tests.serving.sources import policy_source
from tests.serving.worker_programs import CONFIG, command

URL = BucketUrl("gs://bucket/run")
COMPILE_AND_DIE = "say(Compiled()); os._exit(3)"
COMPILE_AND_HANG = "say(Compiled()); signal.pause()"


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
            (policy_source(Path("a"), given=Path("a/3"), copies=Copies(URL, Path("a"))),),
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
                tokens=Path("tokens.toml"),
                policy_settings=(PolicySettings(name="maze", versions=3, max_batch_delay_s=0.5),),
            ),
            (),
            choices=((3,),),
            cores=(),
        ),
        Open(),
        Change(1, "prepare", "maze", 2),
        Change(2, "set_canary", "maze", 2, share=0.25),
        Answered("robot 7", "maze", 2),
        Reported(5, "maze", 2, "robot\n7", 2**64 - 1, reached=True, time_at_goal=9),
        Counted(5, "accepted"),
        Changed(1),
        Changed(2, refused="hash", problem="policies/2 is damaged", detail="it is damaged"),
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
    counted = asyncio.Queue[Counted]()
    change, count = Change(7, "switch", "maze", 2), Counted(3, "accepted")
    with os.fdopen(read_end, "rb", buffering=0) as from_supervisor:
        loop = asyncio.get_running_loop()
        listening = asyncio.create_task(
            asyncio.to_thread(worker.listen, from_supervisor, loop, received, counted.put_nowait, stop)
        )
        lines = to_line(Open()) + to_line(count) + to_line(change)
        os.write(write_end, lines + b'{"type": "Ch')  # the end is cut off
        assert await asyncio.wait_for(received.get(), timeout=10) == Open()
        assert await asyncio.wait_for(received.get(), timeout=10) == change
        assert await asyncio.wait_for(counted.get(), timeout=10) == count
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
        # in a thread, it would log an error
        worker.listen(from_supervisor, ended, asyncio.Queue(), lambda _: None, asyncio.Event())


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
        worker.send(LinePipe(to_supervisor), Compiled(), stop)
    assert stop.is_set()
    pipe, alive = io.BytesIO(), asyncio.Event()
    worker.send(LinePipe(pipe), Compiled(), alive)
    assert pipe.getvalue() == to_line(Compiled())
    assert not alive.is_set()


async def test_a_supervisor_that_reads_nothing_does_not_block_its_worker() -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    stop = asyncio.Event()
    with os.fdopen(write_end, "wb", buffering=0) as to_supervisor, os.fdopen(read_end, "rb"):
        while to_supervisor.write(bytes(4096)):
            pass
        beating = asyncio.create_task(worker.beat(LinePipe(to_supervisor), stop))
        await asyncio.sleep(0.01)
        assert not stop.is_set()
        beating.cancel()


async def test_an_answer_that_the_supervisor_waits_for_is_sent_when_its_pipe_has_room() -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    stop = asyncio.Event()
    with os.fdopen(write_end, "wb", buffering=0) as to_supervisor, os.fdopen(read_end, "rb", buffering=0) as received:
        full = 0
        while written := to_supervisor.write(bytes(4096)):
            full += written
        sending = asyncio.create_task(worker.send_surely(LinePipe(to_supervisor), Changed(7), stop))
        await asyncio.sleep(0.01)
        assert not sending.done()
        while full:
            full -= len(received.read(full))
        await asyncio.wait_for(sending, timeout=10)
        assert from_line(received.read(4096)) == Changed(7)
    assert not stop.is_set()


def test_a_line_of_which_a_nearly_full_pipe_takes_a_part_is_completed_before_the_next_one() -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    stop = asyncio.Event()
    long = Changed(7, problem="x" * 9000)
    with os.fdopen(write_end, "wb", buffering=0) as to_supervisor, os.fdopen(read_end, "rb", buffering=0) as received:
        full = 0
        while written := to_supervisor.write(bytes(4096)):
            full += written
        received.read(4096)  # room for a part of the line
        pipe = LinePipe(to_supervisor)
        assert worker.send(pipe, long, stop)
        assert not worker.send(pipe, Compiled(), stop)
        assert len(received.read(full - 4096)) == full - 4096
        assert worker.send(pipe, Compiled(), stop)
        assert received.read(2**16) == to_line(long) + to_line(Compiled())


async def test_the_detail_of_a_refusal_reaches_the_supervisor() -> None:
    class Refusing(FakeHost):
        async def prepare(self, policy: str, version: int) -> None:
            raise RefusedVersionError("hash", "policies/2 is damaged", detail="it is damaged")

    answer = await worker.changed(Refusing(), Change(5, "prepare", "maze", 2))
    assert answer == Changed(5, refused="hash", problem="policies/2 is damaged", detail="it is damaged")
