"""Measure how much memory a run takes that is resumed with a large replay buffer, compared with one that begins.

    python benchmarks/resume_memory.py --json resume_memory.json

A run begins, takes a few gradient steps and saves a snapshot; another process resumes it and does the same. The figure
is the peak of the resident memory of each process, as the system counts it. A third run with a small replay buffer
shows what does not depend on it. Earlier processes have compiled all programs.
"""

import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _record
import tyro

from training.budgets import memory_budget
from training.config import TrainConfig
from training.envs import registry

ROOT = Path(__file__).resolve().parent.parent
ENVS, UNROLL = 512, 62
SMALL_REPLAY = 620


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure the memory of a resumed run."""

    json: Path | None = None
    """File for the record."""
    replay_size: int = 70_000
    """Steps in the replay buffer, per environment; 70,000 take 1.0 GB."""
    quick: bool = False
    """A small replay buffer: checks that the script works; the figures mean nothing."""


def main() -> None:
    """Measure, and write the record."""
    options = tyro.cli(Options)
    size = 10 * SMALL_REPLAY if options.quick else options.replay_size
    about = _record.machine()
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        for steps in (SMALL_REPLAY, size):  # compiling takes more memory than all else; the others read the programs
            measure("compile", Path(scratch) / f"first-{steps}", steps)
        measure("compile", Path(scratch) / f"first-{size}", size, resume=True)
        rows = [
            measure("begin, small replay buffer", Path(scratch) / "small", SMALL_REPLAY),
            measure("begin", out, size),
            measure("resume", out, size, resume=True),
        ]
        config = TrainConfig(env="point_u_maze", out=out, **settings(size))
    parts = memory_budget.estimate(config, registry.make(config.env))
    small, began, resumed = (row["peak MB"] for row in rows)
    notes = (
        f"resumed / begun: {resumed / began:.2f}; more than with the small replay buffer: {began - small:,.0f} MB "
        f"begun, {resumed - small:,.0f} MB resumed; the estimate has {parts.replay / 1e6:,.0f} MB for the replay "
        f"buffer and {parts.restored / 1e6:,.0f} MB for restoring"
    )
    _record.report("memory of a resumed run", rows, about=about, json_file=options.json, notes=notes)


def settings(replay_size: int) -> dict[str, Any]:
    """Return the settings of the run that is measured."""
    return {
        "num_envs": ENVS,
        "unroll_length": UNROLL,
        "episode_length": 100,
        "max_replay_size": replay_size,
        "min_replay_size": UNROLL,
        "updates_per_unroll": 4,
        "batch_size": 64,
        "eval_episodes": 16,
        "num_evals": 1,
    }


def measure(name: str, out: Path, replay_size: int, *, resume: bool = False) -> dict[str, Any]:
    """Run training in a process of its own until its snapshot; return its peak memory and its time."""
    flags = [f"--{field.replace('_', '-')}={value}" for field, value in settings(replay_size).items()]
    steps = ENVS * UNROLL * (6 if resume else 3)
    command = [sys.executable, str(ROOT / "training" / "run.py"), "--env=point_u_maze", f"--out={out}", *flags]
    command += [f"--total-env-steps={steps}", *(["--resume"] if resume else [])]
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(ROOT)})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the run in {out} ended with exit code {process.returncode}")
    return {"run": name, "peak MB": usage.ru_maxrss * 1024 / 1e6, "seconds": time.perf_counter() - began}


if __name__ == "__main__":
    main()
