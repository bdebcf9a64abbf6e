"""Count the kernels of one gradient step on an accelerator: their number, their run time, and the longest ones.

    python benchmarks/step_kernels.py --depths 4,16,64 --batch 512 --json step_kernels.json

The steps are those of `train_step.py`: ours and the paper-style one. JAX's profiler records every kernel with its
duration. During the rest of the time the device waits, mostly for launches. The profiler slows the steps down, so their
time is measured without it.
"""

import collections
import dataclasses
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import _record
import jax
import train_step
import tyro

LOOPS = 5  # timed loops of `Options.steps` each; one more is profiled
LONGEST = 8
COPY = re.compile(r"memcpy|memset", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Options(train_step.Options):
    """Count the kernels and copies of one gradient step, and measure their run time."""

    cached: bool = True
    """Let JAX's compilation cache serve, where one is set up: nothing here times a compilation."""


class Event(NamedTuple):
    """One kernel or copy on the device."""

    name: str
    seconds: float


def main() -> None:
    """Measure, and write the record."""
    options = tyro.cli(Options)
    if jax.default_backend() == "cpu":
        print("no accelerator found: this benchmark counts the kernels of a GPU", file=sys.stderr)
        return
    if options.quick:
        options = dataclasses.replace(options, depths=(4,), width=64, batch=64)
    about = _record.machine()
    rows: list[dict[str, Any]] = []
    longest: dict[str, list[str]] = {}
    for depth in options.depths:
        steps = {train_step.OURS: train_step.our_step(options, depth)}
        if depth <= options.paper_style_depth:
            steps[train_step.PAPER_STYLE] = train_step.paper_style_step(options, depth)
        for name, step in steps.items():
            row, events = measure(options, step)
            rows.append({"depth": depth, "step": name} | row)
            longest[f"{name} depth {depth}"] = ranked(events)
    notes = f"batch {options.batch}, width {options.width}, {options.precision}, per step, of {options.steps} in a loop"
    _record.report("kernels", rows, about=about, json_file=options.json, notes=notes, details={"longest": longest})


def measure(options: Options, step: train_step.Step) -> tuple[dict[str, Any], list[Event]]:
    """Return a row of the table, and the kernels it was computed from."""
    program = train_step.compile_program(options, step)
    batches, keys = train_step.inputs(options)
    train_state, _ = jax.block_until_ready(program.run(step.init(jax.random.key(2)), batches, keys))
    began = time.perf_counter()
    for _ in range(LOOPS):
        train_state, _ = program.run(train_state, batches, keys)
    jax.block_until_ready(train_state)
    took = (time.perf_counter() - began) / LOOPS / options.steps
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(program.run(train_state, batches, keys))
        events = list(device_events(Path(folder)))
    kernels = [event for event in events if not COPY.search(event.name)]
    running = sum(event.seconds for event in events) / options.steps
    return {
        "kernels": len(kernels) / options.steps,
        "copies": (len(events) - len(kernels)) / options.steps,
        "ms": took * 1e3,
        "running ms": running * 1e3,
        "running share": running / took,
    }, events


def device_events(folder: Path) -> Iterator[Event]:
    """Yield every kernel and copy in a profile, stream by stream.

    Raises:
        ValueError: the profile holds no stream of a device.
    """
    found = False
    for file in folder.rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            for line in plane.lines:
                if plane.name.startswith("/device:") and line.name.startswith("Stream"):
                    found = True
                    yield from (Event(event.name, event.duration_ns / 1e9) for event in line.events)
    if not found:
        raise ValueError(f"the profile in {folder} holds no stream of a device")


def ranked(events: list[Event]) -> list[str]:
    """Return the kernels with the longest total time, one per line: seconds, calls, name."""
    seconds: dict[str, float] = collections.defaultdict(float)
    calls = collections.Counter(event.name for event in events)
    for event in events:
        seconds[event.name] += event.seconds
    longest = sorted(seconds, key=lambda name: seconds[name], reverse=True)[:LONGEST]
    return [f"{seconds[name]:.6f} s {calls[name]:6} {name}" for name in longest]


if __name__ == "__main__":
    main()
