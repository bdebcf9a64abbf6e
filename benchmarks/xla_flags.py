"""Measure a gradient step with different XLA flags, each set of flags in two separate processes.

    python benchmarks/xla_flags.py --depths 16,64 --batch 512 --json xla_flags.json

XLA reads its flags at start, so `train_step.py` runs once for every set and round, without the paper-style step. The
sets take turns. The difference between the two rounds of a set shows the noise.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

import _record
import jax
import train_step
import tyro

ROUNDS = 2
LIMIT_S = 600.0
LOOPS = "--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL"
SETS = {
    "none": "",
    "no command buffers": "--xla_gpu_enable_command_buffer=",
    "buffers of loops": LOOPS,
    "buffers of unrolled loops": f"{LOOPS} --xla_gpu_command_buffer_unroll_loops=true",
    "double buffering": "--xla_gpu_enable_while_loop_double_buffering=true",
    "no triton gemm": "--xla_gpu_enable_triton_gemm=false",
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure one gradient step with sets of XLA's flags for GPUs."""

    json: Path | None = None
    """File for the record."""
    sets: tuple[str, ...] = tuple(SETS)
    """Names of the sets of flags to measure."""
    depths: train_step.Depths = (16, 64)
    """Depths of the actor and the critic, measured one after another."""
    batch: int = 512
    """Number of rows in a batch."""
    precision: Literal["f32", "bf16"] = "f32"
    """Precision of matrix products."""
    block_unroll: int = 1
    """Blocks per iteration of the step's loops over blocks."""
    quick: bool = False
    """Small networks and two sets: checks that the script works; the figures mean nothing."""


def main() -> None:
    """Measure, and write the record."""
    options = tyro.cli(Options)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # this process and its children share the memory
    if jax.default_backend() == "cpu" and not options.quick:
        print("no accelerator found: these flags are for GPUs", file=sys.stderr)
        return
    if options.quick:
        options = dataclasses.replace(options, depths=(4,), sets=options.sets[:2])
    about = _record.machine()
    rounds = [{name: run(options, SETS[name]) for name in options.sets} for _ in range(ROUNDS)]
    rows: list[dict[str, Any]] = []
    for index, depth in enumerate(options.depths):
        plain = min(each[options.sets[0]][index] for each in rounds)
        for name in options.sets:
            first, second = (each[name][index] for each in rounds)
            rows.append(
                {"depth": depth, "flags": name, "ms": first, "ms again": second, "to first": min(first, second) / plain}
            )
    notes = f"batch {options.batch}, {options.precision}; to first: the faster run / the faster run of the first set"
    _record.report("a gradient step by XLA's flags", rows, about=about, json_file=options.json, notes=notes)


def run(options: Options, flags: str) -> list[float]:
    """Return the milliseconds of a step for each depth, in a process with these flags added to XLA_FLAGS."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "step.json"
        words = ["--depths", ",".join(map(str, options.depths)), "--compile-depths", "", "--paper-style-depth", "0"]
        words += [
            "--batch",
            str(options.batch),
            "--precision",
            options.precision,
            "--block-unroll",
            str(options.block_unroll),
        ]
        words += ["--use-cache", "--json", str(record), *(["--quick"] if options.quick else [])]
        script = Path(__file__).with_name("train_step.py")
        environment = os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()}
        command = [sys.executable, str(script), *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        if done.returncode:
            sys.exit(f"{flags or 'no flags'}: exit code {done.returncode}\n{done.stderr[-2000:]}")
        return [row["ms"] for row in json.loads(record.read_text())["rows"]]


if __name__ == "__main__":
    main()
