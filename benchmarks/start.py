"""Measure how long a server takes from its start to its first answer, with an empty and with a full compilation cache.

    python benchmarks/start.py --json start.json

Each start is a new process, as after a crash. A caller sends one request after another until one is answered. Wall time
depends on other programs, so the record also has the processor time of all processes of the server.
`--checkout` measures another checkout of this repository, whose server may not have a cache.
"""

import dataclasses
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _record
import grpc
import tyro
from _serve_policies import publish
from _serve_processes import ROOT, STOP_S, BenchmarkError, Target

from kilolayer.v1 import policy_pb2 as pb
from kilolayer.v1.policy_pb2_grpc import PolicyStub

_STATE_DIM, _GOAL_DIM, _ACTION_DIM = 29, 2, 8
_LIMIT_S, _PAUSE_S = 300.0, 0.05


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure the time from a server's start to its first answer."""

    json: Path | None = None
    """File for the record."""
    depths: tuple[int, int] = (64, 16)
    """Depths of the two policies. The first one alone is served by one process, both by two workers."""
    width: int = 256
    """Width of the policies."""
    max_batch_rows: int = 256
    """Largest batch size of the server."""
    starts: int = 3
    """Starts with a full cache. Figures are medians."""
    checkout: Path = ROOT
    """Checkout of this repository whose server is measured."""
    quick: bool = False
    """Tiny policies and one start: checks that the script works; the figures mean nothing."""


def main() -> None:
    """Measure, and write the record."""
    options = tyro.cli(Options)
    if options.quick:
        options = dataclasses.replace(options, depths=(4, 8), width=16, max_batch_rows=1, starts=1)
    about = _record.machine()
    sizes = {"state_dim": _STATE_DIM, "goal_dim": _GOAL_DIM, "action_dim": _ACTION_DIM}
    with tempfile.TemporaryDirectory(prefix="kilolayer-start-") as name:
        folder = Path(name)
        policies = [publish(folder, depth, width=options.width, **sizes).folder for depth in options.depths]
        rows = [
            row
            for served, workers, settings in (
                (policies[:1], 1, []),
                (policies[:1], 1, ["--max-batch-rows", "1"]),
                (policies, 2, []),
            )
            for row in measure(options, served, [*settings, "--workers", str(workers)], cache=folder / "cache")
        ]
    notes = (
        f"from the start of the process to the first answer, medians of {options.starts} starts (with an empty cache:"
        " one); CPU s: of all processes of the server until then; the machine was shared with other programs"
    )
    _record.report("start of a server", rows, about=about, json_file=options.json, notes=notes)


def measure(options: Options, policies: list[Path], settings: list[str], *, cache: Path) -> list[dict[str, Any]]:
    """Return the rows of the table for one server: with an empty and with a full cache."""
    shutil.rmtree(cache, ignore_errors=True)
    flags = ["--max-batch-rows", str(options.max_batch_rows), *settings]
    empty = [start(options, policies, flags, cache=cache)]
    full = [start(options, policies, flags, cache=cache) for _ in range(options.starts)]
    return [
        {
            "policies": len(policies),
            "settings": " ".join(settings),
            "cache": name,
            "first answer s": statistics.median(wall_s for wall_s, _ in starts),
            "fastest s": min(wall_s for wall_s, _ in starts),
            "slowest s": max(wall_s for wall_s, _ in starts),
            "CPU s": statistics.median(cpu_s for _, cpu_s in starts),
        }
        for name, starts in (("empty", empty), ("full", full))
    ]


def start(options: Options, policies: list[Path], flags: list[str], *, cache: Path) -> tuple[float, float]:
    """Start a server, wait for its first answer, kill it. Return the wall time and the processor time, in seconds.

    Raises:
        BenchmarkError: the server ended, or gave no answer in time.
    """
    port, checkout = _free_port(), options.checkout.absolute()
    words = ["--policies", *map(str, policies), "--listen", f"127.0.0.1:{port}", "--metrics-port", "0", *flags]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environ |= {
        "XDG_CACHE_HOME": str(cache),
        "XDG_STATE_HOME": str(cache / "states"),
        "PYTHONPATH": f"{checkout}:{checkout / 'clients/python'}",
    }
    request = pb.ActRequest(state=[0.0] * _STATE_DIM, goal=[0.0] * _GOAL_DIM)
    began_s = time.monotonic()
    command = [sys.executable, str(checkout / "serving" / "run.py"), *words]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=checkout, env=environ) as process:
        try:
            while not _is_answered(port, request):
                if process.poll() is not None or time.monotonic() - began_s > _LIMIT_S:
                    raise BenchmarkError(f"{command} ended, or gave no answer within {_LIMIT_S:g} s")
                time.sleep(_PAUSE_S)
            return time.monotonic() - began_s, Target("", "", process.pid).cpu_s
        finally:
            process.terminate()
            process.wait(STOP_S)


def _is_answered(port: int, request: pb.ActRequest) -> bool:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            return bool(PolicyStub(channel).Act(request, timeout=1).action)
        except grpc.RpcError:
            return False


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


if __name__ == "__main__":
    main()
