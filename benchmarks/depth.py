"""Whether depth pays: the same environment, steps and gradient steps for every depth, over several seeds.

    python benchmarks/depth.py --depths 4,8,16,32 --seeds 3 --json depth.json --picture depth.png

Every run is `training/run.py` with the environment's preset and another depth for all three networks. Some run side by
side, each on processors of its own, so that their seconds can be compared. A run that is already in the folder of runs
is taken as it is, or continued if it was stopped: repeat the command after an interruption.

A run's figure is the mean of its last five evaluations, as the paper averages its own (arXiv 2503.14858, section 4).
"""

import dataclasses
import itertools
import os
import queue
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import _record
import matplotlib as mpl
import numpy as np
import train_step
import tyro

from training.report import read_metrics

ROOT = Path(__file__).resolve().parent.parent
RECORDED = ("env_steps", "eval/time_at_goal", "eval/success_any", "loss/critic", "time/train_s")  # of every evaluation
LAST = 5  # evaluations that a run's figure is the mean of


@dataclasses.dataclass(frozen=True)
class Options:
    """Time at goal by depth, with the same budget for each."""

    json: Path | None = None
    """File for the record, with every run's curve."""
    picture: Path | None = None
    """PNG file for the curves and the figures by depth."""
    env: str = "point_hardest_maze"
    """Environment; the rest comes from its preset."""
    depths: train_step.Depths = (4, 8, 16, 32)
    """Depths of actor and critic alike."""
    seeds: int = 3
    """Runs of each depth, with the seeds 0, 1, 2 ..."""
    env_steps: int = 1_920_000
    """Environment steps of a run."""
    evaluations: int = 30
    """Evaluations of a run, evenly spaced."""
    learning_rate: float | None = None
    """Of actor, critic and temperature; the preset's, if None. The paper's is 3e-4."""
    discount: float | None = None
    """Of the hindsight law; the preset's, if None. The paper's is 0.99."""
    runs: Path = Path("runs/depth")
    """Folder of the runs; those found there are not repeated."""
    jobs: int = 2
    """Runs side by side, each on an equal share of the processors."""
    quick: bool = False
    """Four tiny runs, some minutes in all: whether it works, not what depth buys."""


class Run(NamedTuple):
    """One finished run."""

    depth: int
    seed: int
    curve: list[dict[str, float]]  # the rows of metrics.jsonl

    def last(self, metric: str) -> float:
        """The mean of the last evaluations."""
        return statistics.fmean(row[metric] for row in self.curve[-LAST:])

    def record(self) -> dict[str, Any]:
        """What the record keeps of it: columns by name."""
        columns = {name: [row.get(name) for row in self.curve] for name in RECORDED}
        return {"depth": self.depth, "seed": self.seed, **columns}


def main() -> None:
    """Train, measure and publish."""
    options = tyro.cli(Options)
    if options.quick:
        options = dataclasses.replace(options, depths=(4, 8), seeds=2, env_steps=60_000, evaluations=1)
    about = _record.machine()
    runs = train_all(options)
    rows = [row(depth, [run for run in runs if run.depth == depth]) for depth in options.depths]
    if options.picture is not None:
        draw(runs, options.picture, title=variant(options))
    _record.publish(
        f"time at goal by depth on {variant(options)}",
        rows,
        about=about,
        json_file=options.json,
        notes=f"{options.env_steps:,} environment steps, {options.seeds} seeds; of each run the mean of its last "
        f"{LAST} evaluations, over the runs the mean and its standard error; train s: gradient steps and rollouts, "
        f"compilation and evaluation apart, {options.jobs} runs side by side",
        details={"runs": [run.record() for run in runs]},
    )


def row(depth: int, runs: Sequence[Run]) -> dict[str, Any]:
    """One line of the table."""
    at_goal = [run.last("eval/time_at_goal") for run in runs]
    reached = [run.last("eval/success_any") for run in runs]
    return {
        "depth": depth,
        "time at goal": statistics.fmean(at_goal),
        "+-": standard_error(at_goal),
        "each run": ", ".join(f"{figure:.1f}" for figure in at_goal),
        "reached": statistics.fmean(reached),
        "+- ": standard_error(reached),
        "critic loss": statistics.fmean(run.last("loss/critic") for run in runs),
        "train s": statistics.fmean(sum(each["time/train_s"] for each in run.curve) for run in runs),
    }


def standard_error(figures: Sequence[float]) -> float | None:
    """Of the mean; none for a single figure."""
    return statistics.stdev(figures) / len(figures) ** 0.5 if len(figures) > 1 else None


def train_all(options: Options) -> list[Run]:
    """Every depth with every seed, the longest first so that no processor is left alone with one."""
    processors = sorted(os.sched_getaffinity(0))
    jobs = min(options.jobs, len(processors))
    shares: queue.SimpleQueue[set[int]] = queue.SimpleQueue()
    for share in np.array_split(processors, jobs):
        shares.put({int(processor) for processor in share})

    def train(planned: tuple[int, int]) -> Run:
        share = shares.get()
        try:
            return train_one(options, *planned, processors=share)
        finally:
            shares.put(share)

    planned = itertools.product(range(options.seeds), sorted(options.depths, reverse=True))
    print(f"{options.seeds * len(options.depths)} runs, {jobs} side by side", file=sys.stderr)
    with ThreadPoolExecutor(jobs) as pool:
        return sorted(pool.map(train, ((depth, seed) for seed, depth in planned)))


def variant(options: Options) -> str:
    """The environment and what differs from its preset."""
    rate = "" if options.learning_rate is None else f", learning rate {options.learning_rate:g}"
    discount = "" if options.discount is None else f", discount {options.discount:g}"
    return f"{options.env}{rate}{discount}"


def train_one(options: Options, depth: int, seed: int, *, processors: Iterable[int]) -> Run:
    """One run in a process of its own, begun, continued or found finished."""
    out = options.runs / variant(options) / f"depth {depth} seed {seed}"
    flags: dict[str, object] = {
        "env": options.env,
        "out": out,
        "seed": seed,
        "actor-depth": depth,
        "critic-depth": depth,
        "total-env-steps": options.env_steps,
        "epochs": options.evaluations,
        "max-minutes": "inf",
        "stop-at-share": "inf",
    }
    if options.learning_rate is not None:
        flags |= {f"{part}-learning-rate": options.learning_rate for part in ("actor", "critic", "temperature")}
    if options.discount is not None:
        flags["discount"] = options.discount
    command = [sys.executable, ROOT / "training" / "run.py"]
    command += [text for name, setting in flags.items() for text in (f"--{name}", str(setting))]
    command += ["--resume"] if (out / "config.json").exists() else []
    out.parent.mkdir(parents=True, exist_ok=True)
    os.sched_setaffinity(0, processors)  # of this thread, and so of the process that it starts
    with out.with_suffix(".log").open("a") as log:
        subprocess.run(command, stdout=log, stderr=log, check=True)
    print(f"{out} is done", file=sys.stderr)
    return Run(depth, seed, read_metrics(out))


def draw(runs: Sequence[Run], path: Path, *, title: str) -> None:
    """Draw the curves of time at goal, and its last figures by depth, into the PNG file `path`."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (curves, figures) = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
    depths = sorted({run.depth for run in runs})
    colours = mpl.colormaps["viridis"](np.linspace(0.1, 0.85, len(depths)))
    for colour, depth in zip(colours, depths, strict=True):
        ours = [run for run in runs if run.depth == depth]
        steps = [row["env_steps"] for row in ours[0].curve]
        heights = np.array([[row["eval/time_at_goal"] for row in run.curve] for run in ours])
        mean, error = heights.mean(axis=0), heights.std(axis=0, ddof=1 if len(ours) > 1 else 0) / len(ours) ** 0.5
        curves.plot(steps, mean, color=colour, marker=".", label=f"depth {depth}")
        curves.fill_between(steps, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)
        last = [run.last("eval/time_at_goal") for run in ours]
        figures.scatter([depth] * len(last), last, color=colour, s=18)
    means = [statistics.fmean(run.last("eval/time_at_goal") for run in runs if run.depth == depth) for depth in depths]
    figures.plot(depths, means, color="grey", linewidth=1, zorder=0)
    curves.set(title=title, xlabel="environment steps", ylabel="time at goal [steps]", ylim=(0, None))
    curves.legend(frameon=False)
    figures.set(title=f"mean of the last {LAST} evaluations, a dot per seed", xlabel="depth", ylim=(0, None))
    figures.set_xscale("log", base=2)
    figures.set_xticks(depths, [str(depth) for depth in depths])
    for panel in (curves, figures):
        panel.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
