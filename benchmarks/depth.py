"""Compare depths: the same environment, number of steps and number of gradient steps for each, over several seeds.

    python benchmarks/depth.py --depths 4,8,16,32 --seeds 3 --json depth.json --picture depth.png

Every run is `training/run.py` with the environment's preset; only the depth of the three networks differs. Several runs
train in parallel, each on its own processors, so that their times can be compared. A finished run in the folder of runs
is used as it is, and a stopped one is resumed. To continue after an interruption, repeat the command.

The figure of a run is the mean of its last five evaluations, as in the paper (arXiv 2503.14858, section 4).
"""

import dataclasses
import itertools
import json
import os
import queue
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import _record
import matplotlib as mpl
import numpy as np
import train_step
import tyro
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from training.run_dir.metrics_log import read_metrics

ROOT = Path(__file__).resolve().parent.parent
RECORDED = ("env_steps", "eval/time_at_goal", "eval/stay", "eval/touched")  # kept in the record for every evaluation
LAST = 5  # number of final evaluations in the mean of a run


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare the time at goal of different depths with the same training budget."""

    json: Path | None = None
    """File for the record, which holds the curve of every run."""
    picture: Path | None = None
    """PNG file for the curves and the figures by depth."""
    redraw: Path | None = None
    """Existing record from which `picture` is drawn. Nothing is trained."""
    env: str = "point_hardest_maze"
    """Environment. All other settings come from its preset."""
    depths: train_step.Depths = (4, 8, 16, 32)
    """Depths of the actor and the critic."""
    seeds: int = 3
    """Number of runs per depth. Their seeds are 0, 1, 2 ..."""
    env_steps: int = 1_920_000
    """Environment steps per run."""
    evaluations: int = 30
    """Number of evaluations per run, evenly spaced."""
    learning_rate: float | None = None
    """Learning rate of actor, critic and temperature; None uses the preset's. The paper's is 3e-4."""
    discount: float | None = None
    """Discount of hindsight goals; None uses the preset's. The paper's is 0.99."""
    runs: Path = Path("runs/depth")
    """Folder for the runs. Finished runs in it are not repeated."""
    jobs: int = 2
    """Number of runs in parallel, each on an equal share of the processors."""
    quick: bool = False
    """Four tiny runs, a few minutes in all: checks that the script works; the figures mean nothing."""


class Run(NamedTuple):
    """One finished run."""

    depth: int
    seed: int
    curve: list[dict[str, float]]  # the rows of metrics.jsonl

    def last(self, metric: str) -> float:
        """Return the mean of the last evaluations."""
        return statistics.fmean(row[metric] for row in self.curve[-LAST:])

    def record(self) -> dict[str, Any]:
        """Return the run's entry in the record: one list per column."""
        columns = {name: [row.get(name) for row in self.curve] for name in RECORDED}
        return {"depth": self.depth, "seed": self.seed, **columns}

    @classmethod
    def from_record(cls, entry: Mapping[str, Any]) -> "Run":
        """Read an entry that `record` has written."""
        names = [name for name in RECORDED if name in entry]  # older records have fewer
        rows = zip(*(entry[name] for name in names), strict=True)
        return cls(entry["depth"], entry["seed"], [dict(zip(names, row, strict=True)) for row in rows])


def main() -> None:
    """Train, measure, and write the record."""
    options = tyro.cli(Options)
    if options.redraw is not None:
        if options.picture is None:
            sys.exit("--redraw needs --picture FILE: the PNG file to draw")
        record = json.loads(options.redraw.read_text())
        draw([Run.from_record(entry) for entry in record["runs"]], options.picture, title=options.env)
        return
    if options.quick:
        options = dataclasses.replace(options, depths=(4, 8), seeds=2, env_steps=60_000, evaluations=1)
    about = _record.machine()
    runs = train_all(options)
    rows = [row(depth, [run for run in runs if run.depth == depth]) for depth in options.depths]
    if options.picture is not None:
        draw(runs, options.picture, title=variant(options))
    _record.report(
        f"time at goal by depth on {variant(options)}",
        rows,
        about=about,
        json_file=options.json,
        notes=f"{options.env_steps:,} environment steps, {options.seeds} seeds; figure of a run: mean of its last "
        f"{LAST} evaluations; figure of a depth: mean over runs and its standard error; train s: gradient steps and "
        f"rollouts without compilation and evaluation, {options.jobs} runs in parallel",
        details={"runs": [run.record() for run in runs]},
    )


def row(depth: int, runs: Sequence[Run]) -> dict[str, Any]:
    """Return one row of the table."""
    at_goal = [run.last("eval/time_at_goal") for run in runs]
    stay, touched = ([run.last(f"eval/{name}") for run in runs] for name in ("stay", "touched"))
    return {
        "depth": depth,
        "time at goal": statistics.fmean(at_goal),
        "+-": standard_error(at_goal),
        "each run": ", ".join(f"{figure:.1f}" for figure in at_goal),
        "stay": statistics.fmean(stay),
        "+- ": standard_error(stay),
        "touched": statistics.fmean(touched),
        "+-  ": standard_error(touched),
        "critic loss": statistics.fmean(run.last("loss/critic") for run in runs),
        "train s": statistics.fmean(sum(each["time/train_s"] for each in run.curve) for run in runs),
    }


def standard_error(figures: Sequence[float]) -> float | None:
    """Return the standard error of the mean; None for a single figure."""
    return statistics.stdev(figures) / len(figures) ** 0.5 if len(figures) > 1 else None


def train_all(options: Options) -> list[Run]:
    """Train every depth with every seed, deepest first, so that the longest run does not start last."""
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
    print(f"{options.seeds * len(options.depths)} runs, {jobs} in parallel", file=sys.stderr)
    with ThreadPoolExecutor(jobs) as pool:
        return sorted(pool.map(train, ((depth, seed) for seed, depth in planned)))


def variant(options: Options) -> str:
    """Return the environment's name and the settings that differ from its preset."""
    rate = "" if options.learning_rate is None else f", learning rate {options.learning_rate:g}"
    discount = "" if options.discount is None else f", discount {options.discount:g}"
    return f"{options.env}{rate}{discount}"


def train_one(options: Options, depth: int, seed: int, *, processors: Iterable[int]) -> Run:
    """Start or resume one run in its own process, unless it is finished; return its curve."""
    out = options.runs / variant(options) / f"depth {depth} seed {seed}"
    flags: dict[str, object] = {
        "env": options.env,
        "out": out,
        "seed": seed,
        "actor-depth": depth,
        "critic-depth": depth,
        "total-env-steps": options.env_steps,
        "num-evals": options.evaluations,
        "max-eval-share": 1,
        "max-minutes": "inf",
        "target-stay-rate": "inf",
    }
    if options.learning_rate is not None:
        flags |= {f"{part}-learning-rate": options.learning_rate for part in ("actor", "critic", "temperature")}
    if options.discount is not None:
        flags["discount"] = options.discount
    command = [sys.executable, ROOT / "training" / "run.py"]
    command += [text for name, setting in flags.items() for text in (f"--{name}", str(setting))]
    command += ["--resume"] if (out / "config.json").exists() else []
    out.parent.mkdir(parents=True, exist_ok=True)
    os.sched_setaffinity(0, processors)  # applies to this thread; the new process inherits it
    with out.with_suffix(".log").open("a") as log:
        subprocess.run(command, stdout=log, stderr=log, check=True)
    print(f"{out} is done", file=sys.stderr)
    return Run(depth, seed, read_metrics(out))


def draw(runs: Sequence[Run], path: Path, *, title: str) -> None:
    """Draw time at goal over environment steps, and the final time at goal by depth, into the PNG file `path`."""
    figure = Figure(figsize=(9.5, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    curves, finals = figure.subplots(1, 2)
    depths = sorted({run.depth for run in runs})
    colors = mpl.colormaps["viridis"](np.linspace(0.1, 0.85, len(depths)))
    means: list[float] = []
    for color, depth in zip(colors, depths, strict=True):
        same = [run for run in runs if run.depth == depth]
        steps = [row["env_steps"] / 1e6 for row in same[0].curve]
        heights = np.array([[row["eval/time_at_goal"] for row in run.curve] for run in same])
        mean, error = heights.mean(axis=0), heights.std(axis=0, ddof=min(len(same) - 1, 1)) / len(same) ** 0.5
        curves.plot(steps, mean, color=color, linewidth=1.8, label=f"depth {depth}")
        curves.fill_between(steps, mean - error, mean + error, color=color, alpha=0.18, linewidth=0)
        last = [run.last("eval/time_at_goal") for run in same]
        finals.scatter([depth] * len(last), last, color=color, s=28, clip_on=False)
        means.append(statistics.fmean(last))
    finals.plot(depths, means, color="gray", linewidth=1, marker="_", markersize=16, zorder=0, label="mean")
    curves.set(title=title, xlabel="environment steps [million]", ylabel="time at goal [control steps]", xlim=(0, None))
    curves.locator_params(axis="x", nbins=5)
    curves.legend(frameon=False)
    finals.set(title=f"Mean of the last {LAST} evaluations, one dot per seed", xlabel="depth")
    finals.set_xscale("log", base=2)
    finals.set_xticks(depths, [str(depth) for depth in depths])
    finals.margins(x=0.12)
    finals.legend(frameon=False, loc="lower right")
    top = 1.05 * max(max(row["eval/time_at_goal"] for row in run.curve) for run in runs)
    for panel in (curves, finals):
        panel.set_ylim(0, top)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
