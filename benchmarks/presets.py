"""Measure how long presets take until a policy reaches its goals, over several seeds.

    python benchmarks/presets.py --json benchmarks/results/presets.json

Every run is `training/run.py` in a process of its own, one after the other, with an empty compilation cache, so a run
costs what a user's first run costs. A finished run in the folder of runs is used as it is: repeat the command to
continue after an interruption.

Two times of a run are measured. The first is when an evaluation first touches `--touched` of its goals. The second is
the whole command. CPU seconds count all threads; on a shared machine they say more than wall-clock seconds.
"""

import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import _record
import tyro

from training.run_dir.metrics_log import read_metrics

ROOT = Path(__file__).resolve().parent.parent
COST = "cost.json"  # in a finished run's folder
SUCCESS = ("eval/touched", "eval/stay")

Flags = tuple[str, ...]


def settings(worlds: int, unroll: int, updates: int, *, batch: int, width: int, commanded: float = 0.5) -> Flags:
    """Return the flags of a candidate."""
    sizes = {"num-envs": worlds, "unroll-length": unroll, "updates-per-unroll": updates, "batch-size": batch}
    values = sizes | {"actor-width": width, "critic-width": width, "commanded-goals": commanded}
    return tuple(text for name, value in values.items() for text in (f"--{name}", str(value)))


# What a preset was chosen among, besides itself. Names: worlds x unroll, updates x batch, width.
CANDIDATES: Mapping[str, Mapping[str, Flags]] = MappingProxyType(
    {
        "point_u_maze": {
            "no commanded goals": ("--commanded-goals", "0"),
            "256 x 25, 128 x 256, 64, none": settings(256, 25, 128, batch=256, width=64, commanded=0),
            "256 x 25, 128 x 256, 64": settings(256, 25, 128, batch=256, width=64),
            "16 x 10, 64 x 32, 16": settings(16, 10, 64, batch=32, width=16),
            "16 x 10, 128 x 64, 32": settings(16, 10, 128, batch=64, width=32),
        }
    }
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure the seconds that presets take to reach their goals."""

    json: Path | None = None
    """File for the record."""
    envs: tuple[str, ...] = ("point_u_maze", "point_big_maze", "point_hardest_maze")
    """Environments, each with the preset of its name."""
    seeds: int = 10
    """Number of runs per preset. Their seeds are 0, 1, 2 ..."""
    touched: float = 0.9
    """Share of the goals to touch; the time until then is measured."""
    candidates: bool = False
    """Also measure what each preset was chosen among."""
    flags: str = ""
    """More flags of the training command for every run, separated by spaces: --flags="--preset paper --num-evals 9"."""
    runs: Path = Path("runs/presets")
    """Folder for the runs. Finished runs in it are not repeated."""
    cores: int = 0
    """Number of CPU cores for each run; 0 for all."""
    quick: bool = False
    """One tiny run, a minute: checks that the script works; the figures mean nothing."""


class Run(NamedTuple):
    """One finished run."""

    seed: int
    wall_s: float  # of the whole command
    cpu_s: float  # of all its threads
    curve: Sequence[Mapping[str, float]]  # the rows of metrics.jsonl

    def first(self, key: str, *, touched: float) -> float | None:
        """Return `key` of the first evaluation that touched that share of its goals; None if none did."""
        return next((row[key] for row in self.curve if row["eval/touched"] >= touched), None)

    def record(self) -> dict[str, Any]:
        """Return the run as it is recorded."""
        names = ("env_steps", "time/total_s", *SUCCESS)
        curve = {name: [row[name] for row in self.curve] for name in names}
        return {"seed": self.seed, "wall_s": self.wall_s, "cpu_s": self.cpu_s, **curve}


def main() -> None:
    """Train every preset with every seed, and write the record."""
    options = tyro.cli(Options)
    if options.quick:
        quick = "--total-env-steps 30000 --num-evals 1 --eval-episodes 16"
        options = dataclasses.replace(options, envs=options.envs[:1], seeds=1, flags=quick)
    about = _record.machine()
    rows: list[dict[str, Any]] = []
    records: dict[str, list[dict[str, Any]]] = {}
    for env in options.envs:
        named = {"preset": (), **(CANDIDATES.get(env, {}) if options.candidates else {})}
        for name, flags in named.items():
            runs = [
                run(options, env, f"{env}-{len(rows)}-{seed}", seed=seed, flags=flags) for seed in range(options.seeds)
            ]
            rows.append({"environment": env, "settings": name, **row(runs, touched=options.touched)})
            records[f"{env}, {name}"] = [each.record() for each in runs]
    notes = f"median (smallest to largest) of {options.seeds} seeds; touched: {options.touched:g} of the goals"
    _record.report("presets", rows, about=about, json_file=options.json, notes=notes, details={"runs": records})


def run(options: Options, env: str, name: str, *, seed: int, flags: Flags) -> Run:
    """Return the run in the folder `name`; train it first if it is not finished."""
    folder = options.runs / name
    if not (folder / COST).exists():
        command = [sys.executable, str(ROOT / "training" / "run.py"), "--env", env, "--out", str(folder)]
        command += ["--seed", str(seed), "--overwrite", *flags, *options.flags.split()]
        cost = measured(lambda: subprocess.run(command, check=True, env=_environment(), preexec_fn=_on(options.cores)))
        (folder / COST).write_text(json.dumps(cost))
    cost = json.loads((folder / COST).read_text())
    return Run(seed, cost["wall_s"], cost["cpu_s"], read_metrics(folder))


def measured(work: Callable[[], object]) -> dict[str, float]:
    """Return the wall-clock and the CPU seconds of a child process that `work` starts and waits for."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return {"wall_s": time.perf_counter() - began, "cpu_s": cpu_s}


def row(runs: Sequence[Run], *, touched: float) -> dict[str, Any]:
    """Return one row of the table, of the runs of one preset."""
    last = [each.curve[-1] for each in runs]
    return {
        "s until touched": _spread([each.first("time/total_s", touched=touched) for each in runs]),
        "steps until touched": _spread([each.first("env_steps", touched=touched) for each in runs]),
        "command s": _spread([each.wall_s for each in runs]),
        "CPU s": _spread([each.cpu_s for each in runs]),
        "last touched": _spread([each["eval/touched"] for each in last]),
        "last stay": _spread([each["eval/stay"] for each in last]),
    }


def _spread(figures: Sequence[float | None]) -> str:
    """Return the median and the extremes; a run without a figure counts as slower than all others."""
    known = sorted(float("inf") if figure is None else figure for figure in figures)
    median, least, most = (_text(figure) for figure in (statistics.median(known), known[0], known[-1]))
    return f"{median} ({least} to {most})"


def _text(figure: float) -> str:
    if figure == float("inf"):
        return "never"
    return f"{figure:,.0f}" if figure >= 10 else f"{figure:.3g}"


def _environment() -> dict[str, str]:
    """Return this process's environment without its compilation cache."""
    return {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"} | {
        "JAX_ENABLE_COMPILATION_CACHE": "false"
    }


def _on(cores: int) -> Callable[[], None] | None:
    """Return what restricts a new process to the first `cores` cores; None for all cores."""
    return (lambda: os.sched_setaffinity(0, range(cores))) if cores else None


if __name__ == "__main__":
    main()
