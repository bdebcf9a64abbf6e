"""What a pause between two calls costs the compiled call itself: a robot asks, and then there is none for a while.

    python benchmarks/pauses.py --json pauses.json

The server's compiled call on one row, in this process, back to back and with pauses of sleep between. On a CPU it stays
on the thread that calls; `--one-core` keeps that thread, and all others of the process, to one core.
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
    """The compiled call with pauses between."""

    json: Path | None = None
    """File for the record."""
    depths: train_step.Depths = (4, 64)
    """Depths of the policies, each measured by itself."""
    width: int = 256
    """Width of the policies."""
    pauses_ms: tuple[float, ...] = (0.0, 0.3, 1.0, 5.0)
    """Sleep between two calls."""
    calls: int = 300
    """Calls of each; the median counts."""
    one_core: bool = False
    """Whether this process keeps to one core."""
    quick: bool = False
    """A tiny policy, few calls: whether it works, not how fast."""


def main() -> None:
    """Measure and publish."""
    options = tyro.cli(Options)
    if options.quick:
        options = dataclasses.replace(options, depths=(4,), width=16, pauses_ms=(0.0, 1.0), calls=5)
    if options.one_core:
        if sys.platform != "linux":
            sys.exit("only Linux confines a process to a core; leave out --one-core")
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # as the server does
    about = _record.machine()
    with tempfile.TemporaryDirectory(prefix="kilolayer-pauses-") as folder:
        rows = [measure(options, depth, Path(folder)) for depth in options.depths]
    cores = "one core" if options.one_core else "every core"
    notes = f"one row, width {options.width}, us, medians of {options.calls} calls, on {cores}"
    _record.publish("the compiled call, by the pause before it", rows, about=about, json_file=options.json, notes=notes)


def measure(options: Options, depth: int, folder: Path) -> dict[str, Any]:
    """One row of the table: microseconds by pause."""
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
