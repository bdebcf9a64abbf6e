"""Measure how much slower the compiled call is after a pause, as between two calls of a robot.

    python benchmarks/pauses.py --json pauses.json

The server's compiled call runs on one row in this process, in a loop and with sleeps in between. On a CPU it is
computed in the calling thread. `--one-core` confines all threads of the process to one core.
"""

import dataclasses
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _record
import jax
import numpy as np
import train_step
import tyro
from _serve_policies import publish

from serving.engine.engine import Engine, Kind


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure the compiled call after pauses."""

    json: Path | None = None
    """File for the record."""
    depths: train_step.Depths = (4, 64)
    """Depths of the policies, measured one after another."""
    width: int = 256
    """Width of the policies."""
    pauses_ms: tuple[float, ...] = (0.0, 0.3, 1.0, 5.0)
    """Durations of the sleep before each call, in milliseconds."""
    calls: int = 300
    """Number of calls for each pause. Figures are medians."""
    one_core: bool = False
    """Confine this process to one core (Linux only)."""
    quick: bool = False
    """A tiny policy and few calls: checks that the script works; the figures mean nothing."""


def main() -> None:
    """Measure, and write the record."""
    options = tyro.cli(Options)
    if options.quick:
        options = dataclasses.replace(options, depths=(4,), width=16, pauses_ms=(0.0, 1.0), calls=5)
    if options.one_core:
        if sys.platform != "linux":
            sys.exit("--one-core works on Linux only; leave it out")
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # the server's setting
    about = _record.machine()
    with tempfile.TemporaryDirectory(prefix="kilolayer-pauses-") as folder:
        rows = [measure(options, depth, Path(folder)) for depth in options.depths]
    cores = "one core" if options.one_core else "every core"
    notes = f"one row, width {options.width}, us, medians of {options.calls} calls, on {cores}"
    _record.report("the compiled call, by the pause before it", rows, about=about, json_file=options.json, notes=notes)


def measure(options: Options, depth: int, folder: Path) -> dict[str, Any]:
    """Return one row of the table: microseconds by pause."""
    policy = publish(folder, depth, width=options.width, state_dim=29, goal_dim=2, action_dim=8)
    engine = Engine(policy.params, policy.spec, max_rows=1)
    engine.compile(Kind.ACT, 1)
    row = np.random.default_rng(0).normal(size=(1, 31)).astype(np.float32)

    def call(pause_s: float) -> float:
        time.sleep(pause_s)
        began = time.perf_counter()
        engine.compute(Kind.ACT, row)
        return (time.perf_counter() - began) * 1e6

    by_pause = {
        f"after {pause_ms:g} ms": statistics.median(call(pause_ms / 1000) for _ in range(options.calls))
        for pause_ms in options.pauses_ms
    }
    return {"depth": depth} | by_pause


if __name__ == "__main__":
    main()
