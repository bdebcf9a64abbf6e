"""The processes of the serving benchmarks: servers, echo server, load generator; their memory and processor time.

Each process is stopped with SIGTERM at the end of the block that started it. An exit code other than 0 is an error.
Every wait has a time limit.
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
READY_S = 600.0  # a deep network compiles for many batch sizes
STOP_S = 60.0
_POLL_S, _SAMPLE_S = 0.02, 0.05
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class BenchmarkError(Exception):
    """A process failed or took too long."""


@dataclasses.dataclass(frozen=True)
class ServerSettings:
    """Settings of a server."""

    max_call_rows: int = 256
    max_batch_rows: int = 256
    max_queue_rows: int = 1024
    workers: int = 1
    tls_cert: Path | None = None
    tls_key: Path | None = None


@dataclasses.dataclass(frozen=True)
class Target:
    """A process that answers calls."""

    name: str
    address: str
    pid: int
    ca: str = ""  # file of the authority of its certificate; empty: plain text

    @property
    def memory_bytes(self) -> int:
        """Resident memory of the process and its workers. Shared memory counts once per process."""
        return sum(_resident_bytes(pid) for pid in self._pids())

    @property
    def cpu_s(self) -> float:
        """Processor time of all threads of the process and its workers since their start."""
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
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S  # utime and stime follow the name in brackets


def server_command(policies: Path, settings: ServerSettings, *, profile: Path | None = None) -> list[str]:
    """Return the server's command line. No other place of the benchmarks has its flags.

    Args:
        policies: folder of the policies to serve.
        settings: values of the flags.
        profile: file for cProfile's data of the main thread, which runs the event loop; None runs without cProfile.
    """
    flags = {
        "--policies": policies,
        "--listen": "127.0.0.1:0",
        "--metrics-port": 0,
        "--max-batch-rows": settings.max_batch_rows,
        "--max-call-rows": settings.max_call_rows,
        "--max-queue-rows": settings.max_queue_rows,
        "--workers": settings.workers,
    }
    if settings.tls_cert and settings.tls_key:
        flags |= {"--tls-cert": settings.tls_cert, "--tls-key": settings.tls_key}
    profiler = [] if profile is None else ["-m", "cProfile", "-o", str(profile)]
    words = [str(word) for flag in flags.items() for word in flag]
    return [sys.executable, *profiler, str(ROOT / "serving" / "run.py"), *words]


def echo_command(*, state_dim: int, action_dim: int) -> list[str]:
    """Return the echo server's command line."""
    sizes = ["--state-dim", str(state_dim), "--action-dim", str(action_dim)]
    return [sys.executable, str(ROOT / "benchmarks" / "_echo.py"), *sizes]


@contextmanager
def running(name: str, command: Sequence[str], *, folder: Path) -> Generator[Target]:
    """Run a server process until the block ends. The block starts when the server has printed its ready line.

    Args:
        name: name of the target, and of the log file.
        command: command line of the process.
        folder: folder for the log file.

    Raises:
        BenchmarkError: the process was not ready in time, or did not end with exit code 0 after SIGTERM.
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
            process.kill()  # no effect if it has ended
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
    """The process of the load generator. It runs one plan after another."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def run(self, plan: dict[str, Any], *, limit_s: float = 300.0) -> dict[str, Any]:
        """Run `plan`, given as the fields of `_serve_load.Plan`, and return its outcome.

        Raises:
            BenchmarkError: the generator failed, or took longer than `limit_s` and was killed.
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
            raise BenchmarkError(f"the load generator failed or took more than {limit_s:g} s: {plan}")
        return json.loads(line)


@contextmanager
def load_generator() -> Generator[LoadGenerator]:
    """Run a load generator until the block ends."""
    command = [sys.executable, str(ROOT / "benchmarks" / "_serve_load.py")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT) as process:
        try:
            yield LoadGenerator(process)
        finally:
            process.kill()


@contextmanager
def watched_memory(target: Target) -> Generator[list[int]]:
    """Sample the target's resident memory, in bytes, twenty times a second until the block ends."""
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
    """Return the functions of a profile by own time, longest first, one per line.

    Args:
        profile: file written by cProfile.
        idle: profile of the same process without load; it is subtracted to remove start and stop.
        count: number of functions to return.
    """
    table, start = (vars(pstats.Stats(str(file)))["stats"] for file in (profile, idle))
    ranked: list[tuple[float, int, str]] = []
    for (file, line, name), seen in table.items():
        calls, own_s = seen[1:3]
        calls_before, own_s_before = start.get((file, line, name), (0, 0, 0.0))[1:3]
        if calls > calls_before:
            place = "" if file == "~" else f"{'/'.join(Path(file).parts[-3:])}:{line} "
            ranked.append((own_s - own_s_before, calls - calls_before, place + re.sub(" at 0x[0-9a-f]+", "", name)))
    lines = [f"{own_s:8.3f} {calls:9}  {function}" for own_s, calls, function in sorted(ranked, reverse=True)[:count]]
    return [f"{'own s':>8} {'calls':>9}  function", *lines]
