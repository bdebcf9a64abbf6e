"""The processes of the serving benchmark: servers, the echo server, the load generator; their memory and time.

Each ends with the block that started it: by SIGTERM, with exit code 0 or an error. Nothing is waited for without limit.
"""

import dataclasses
import json
import os
import pstats
import re
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread, Timer
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
READY_S = 600.0  # compiling many sizes of a deep network
STOP_S = 60.0
_POLL_S, _SAMPLE_S = 0.02, 0.05
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class BenchmarkError(Exception):
    """A process did not do what it was started for."""


@dataclasses.dataclass(frozen=True)
class ServerSettings:
    """How a server is told to batch."""

    max_call_rows: int = 256
    max_batch_rows: int = 256
    max_queue_rows: int = 1024
    workers: int = 1


@dataclasses.dataclass(frozen=True)
class Target:
    """A process that answers calls."""

    name: str
    address: str
    pid: int

    @property
    def memory_bytes(self) -> int:
        """Resident now, with its workers; what they share counts for each."""
        return sum(_resident_bytes(pid) for pid in self._pids())

    @property
    def cpu_s(self) -> float:
        """Processor time of all its threads since it started, and of its workers'."""
        return sum(_cpu_s(pid) for pid in self._pids())

    def _pids(self) -> list[int]:
        lists = Path(f"/proc/{self.pid}/task").glob("*/children")
        return [self.pid, *(int(pid) for children in lists for pid in children.read_text().split())]


def _resident_bytes(pid: int) -> int:
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S  # utime and stime, after the name in brackets


def server_command(policies: Path, settings: ServerSettings, *, profile: Path | None = None) -> list[str]:
    """The server's command line: the only place that knows its flags.

    Args:
        profile: file for what cProfile sees of the main thread, which runs the event loop; None: no profile.
    """
    flags = {
        "--policies": policies,
        "--port": 0,
        "--metrics-port": 0,
        "--max-batch-rows": settings.max_batch_rows,
        "--max-call-rows": settings.max_call_rows,
        "--max-queue-rows": settings.max_queue_rows,
        "--workers": settings.workers,
    }
    profiler = [] if profile is None else ["-m", "cProfile", "-o", str(profile)]
    words = [str(word) for flag in flags.items() for word in flag]
    return [sys.executable, *profiler, str(ROOT / "serving" / "run.py"), *words]


def echo_command(*, state_dim: int, action_dim: int) -> list[str]:
    """The echo server's command line."""
    sizes = ["--state-dim", str(state_dim), "--action-dim", str(action_dim)]
    return [sys.executable, str(ROOT / "benchmarks" / "_echo.py"), *sizes]


@contextmanager
def running(name: str, command: Sequence[str], *, folder: Path) -> Generator[Target]:
    """A server process from its ready line to its end.

    Args:
        folder: for its log.

    Raises:
        BenchmarkError: it was not ready in time, or did not end with exit code 0 when told to.
    """
    log = folder / f"{name}.log"
    with log.open("w") as file, subprocess.Popen(command, stderr=file, cwd=ROOT) as process:
        try:
            yield Target(name, _ready_address(process, log), process.pid)
            process.send_signal(signal.SIGTERM)
            code = process.wait(STOP_S)
        except subprocess.TimeoutExpired as error:
            raise BenchmarkError(f"{name} did not stop within {STOP_S:g} s of SIGTERM:\n{log.read_text()}") from error
        finally:
            process.kill()  # of no effect on one that has ended
    if code:
        raise BenchmarkError(f"{name} ended with exit code {code}:\n{log.read_text()}")


def _ready_address(process: "subprocess.Popen[bytes]", log: Path) -> str:
    ends_s = time.monotonic() + READY_S
    while time.monotonic() < ends_s and process.poll() is None:
        if found := re.search(r"ready: grpc=(\S+)", log.read_text()):
            return found[1]
        time.sleep(_POLL_S)
    raise BenchmarkError(f"{process.args} was not ready within {READY_S:g} s, or ended:\n{log.read_text()}")


class LoadGenerator:
    """The load generator's process, which carries out one plan after another."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def run(self, plan: dict[str, Any], *, limit_s: float = 300.0) -> dict[str, Any]:
        """Carry out `plan`, the fields of `_serve_load.Plan`, and return its outcome.

        Raises:
            BenchmarkError: there was none within `limit_s`; the generator is gone then.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        watchdog = Timer(limit_s, self._process.kill)
        watchdog.start()
        try:
            self._process.stdin.write(json.dumps(plan) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        finally:
            watchdog.cancel()
        if not line:
            raise BenchmarkError(f"the load generator failed, or took over {limit_s:g} s, on {plan}")
        return json.loads(line)


@contextmanager
def load_generator() -> Generator[LoadGenerator]:
    """A load generator, until the block ends."""
    command = [sys.executable, str(ROOT / "benchmarks" / "_serve_load.py")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT) as process:
        try:
            yield LoadGenerator(process)
        finally:
            process.kill()


@contextmanager
def watched_memory(target: Target) -> Generator[list[int]]:
    """The target's resident bytes, twenty times a second until the block ends."""
    samples = [target.memory_bytes]
    stop = Event()

    def watch() -> None:
        while not stop.wait(_SAMPLE_S):
            samples.append(target.memory_bytes)

    thread = Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


def top_functions(profile: Path, *, idle: Path, count: int) -> list[str]:
    """The functions of what cProfile wrote, the longest own time first, one a line.

    Args:
        idle: a profile of the same process without load, which is subtracted: it started and stopped.
    """
    table, start = (vars(pstats.Stats(str(file)))["stats"] for file in (profile, idle))
    ranked: list[tuple[float, int, str]] = []
    for (file, line, name), seen in table.items():
        calls, own_s = seen[1:3]
        calls_before, own_s_before = start.get((file, line, name), (0, 0, 0.0))[1:3]
        if calls > calls_before:
            place = "" if file == "~" else f"{'/'.join(Path(file).parts[-2:])}:{line} "
            ranked.append((own_s - own_s_before, calls - calls_before, place + re.sub(" at 0x[0-9a-f]+", "", name)))
    lines = [f"{own_s:8.3f} {calls:9}  {function}" for own_s, calls, function in sorted(ranked, reverse=True)[:count]]
    return [f"{'own s':>8} {'calls':>9}  function", *lines]
