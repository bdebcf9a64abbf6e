"""Figures of training on two cores, and of the demonstration."""

import json
import statistics
from collections.abc import Sequence
from typing import Any

from tests.docs.figures import ROOT, Record, Texts, find, line, record, significant


def depth() -> Texts:
    """The gain from depth."""
    page, found = "docs/results.md", record("depth.json")
    rows = {row["depth"]: row for row in found["rows"]}
    reached = {depth: f"{row['reached']:.2f}" for depth, row in rows.items()}  # touched, as newer records say
    yield page, f"a policy of depth 4 touches {reached[4]} of its goals after 1.92 million environment steps"
    yield page, f"A policy of depth 16 touches {reached[16]}"
    yield "README.md", f"depth 4 touches {reached[4]} of its goals and depth 16 touches {reached[16]}"
    for depth, row in rows.items():
        each = ", ".join(f"{float(figure):.0f}" for figure in row["each run"].split(", "))
        error = f"{row['+- ']:.3f}" if row["+- "] < 0.005 else f"{row['+- ']:.2f}"
        at_goal = f"{row['time at goal']:.0f} ± {row['+-']:.1f}"
        yield page, line(depth, at_goal, each, f"{reached[depth]} ± {error}")
    half = [_at_half(found["runs"], depth) for depth in rows]
    *first, last = (f"{mean:.0f} ± {error:.0f}" for mean, error in half)
    yield page, f"After 960,000 steps the same runs were at {', '.join(first)} and {last}"


def _at_half(runs: Sequence[Record], depth: int) -> tuple[float, float]:
    """Return mean and standard error of the time at goal, over the last five evaluations up to half the steps."""
    means: list[float] = []
    for run in (run for run in runs if run["depth"] == depth):
        end = run["env_steps"].index(run["env_steps"][-1] // 2) + 1
        means.append(statistics.fmean(run["eval/time_at_goal"][end - 5 : end]))
    return statistics.fmean(means), statistics.stdev(means) / len(means) ** 0.5


def train_step() -> Texts:
    """One gradient step on two cores."""
    page, results = "benchmarks/results/train_step.md", "docs/results.md"
    found = record("train_step.json")
    rows = found["rows"]
    for row in rows:
        ran = row["ms"] is not None
        yield (
            page,
            line(
                row["depth"],
                {"ours": "ours", "paper": "paper-style"}[row["step"]],
                f"{row['build s']:.1f}",
                significant(row["ms"]) if ran else "not run",
                f"{row['MiB']:.0f}" if row["MiB"] >= 100 else f"{row['MiB']:.1f}",
                significant(row["GFLOP"]),
                significant(row["rate"]),
                f"{row['share']:.2f}" if ran else None,
                f"{row['ratio']:.2f}" if ran else None,
                f"{row['to paper']:.2f}" if row["to paper"] else None,
            ),
        )
    own = {row["depth"]: row for row in rows if row["step"] == "ours"}
    ratio, paper = ({depth: f"{own[depth][name]:.2f}" for depth in (4, 16, 64)} for name in ("ratio", "to paper"))
    compiling = found["notes"].rpartition(": ")[2]
    yield page, line("at most 1.6 times FLOP / rate at depth 16", f"{ratio[16]}: met")
    yield page, line("the same at depth 64", f"{ratio[64]}: met")
    yield page, line("never slower than the paper-style step", f"{', '.join(paper.values())} of its time: met")
    yield (
        page,
        line(
            "build at depth 1024 takes at most 1.5 times that at depth 8", f"{compiling} (median of three pairs): met"
        ),
    )
    yield results, f"{ratio[16]} / {ratio[64]} times as long"
    yield results, f"{paper[16]} / {paper[64]} of its time"
    yield results, f"compilation at depth 1024, compared with depth 8 | {compiling} times as long"


def memory() -> Texts:
    """The memory of a very deep gradient step."""
    row = find(record("train_step_memory.json")["rows"], depth=1024)
    gigabytes = f"{row['MiB'] * 2**20 / 1e9:.1f} GB"
    yield "docs/training.md", f"{gigabytes} for a gradient step at depth 1024, width 256 and batch 512"
    yield "benchmarks/results/train_step.md", f"needs {row['MiB']:,.0f} MiB ({gigabytes})"


def resumed() -> Texts:
    """The memory of a run that begins, and of one that is resumed."""
    rows = record("resume_memory.json")["rows"]
    begun, again = (f"{find(rows, run=run)['peak MB'] / 1e3:.2f} GB" for run in ("begin", "resume"))
    yield (
        "docs/training.md",
        f"With a replay buffer of 1.0 GB, the peak is {begun} for a run that begins and {again} for a resumed one",
    )


def batched_encoders() -> Texts:
    """The critic's encoders in one product or in two."""
    for row in record("batched_encoders.json")["rows"]:
        separate, batched = (significant(row[f"{name} ms"]) for name in ("separate", "batched"))
        yield (
            "benchmarks/results/train_step.md",
            line(row["depth"], separate, batched, f"{row['batched / separate']:.2f}"),
        )


def train_loop() -> Texts:
    """The training loop on two cores."""
    page, results = "benchmarks/results/train_loop.md", "docs/results.md"
    rows: list[dict[str, Any]] = [
        {"env": env, **row}
        for env, name in (("ant", "ant"), ("point_u_maze", "point"))
        for row in record(f"train_loop_{name}.json")["rows"]
    ]
    for row in rows:
        yield (
            page,
            line(
                f"`{row['env']}`",
                row["depth"],
                f"{row['steps/s']:,.0f}",
                f"{row['collect s']:.3f}",
                significant(row["learn s"]),
                significant(row["physics steps/s"]),
                f"{row['bound steps/s']:,.0f}",
                f"{row['of bound']:.2f}",
                f"{row['start s']:.0f} s",
            ),
        )
    of_bound = [f"{row['of bound']:.2f}" for row in rows]
    deep = [f"{row['start s']:.0f}" for row in rows if row["depth"] == 64]
    learning = [
        [row["learn s"] / (row["learn s"] + row["collect s"]) for row in rows if row["depth"] == d] for d in (4, 64)
    ]
    yield page, line("at least 0.7 of the bound", f"{min(of_bound)} to {max(of_bound)}: met")
    yield page, line("first gradient steps within a minute at depth 64", f"{min(deep)} and {max(deep)} s: met")
    shallow, much = (f"{min(each):.2f} to {max(each):.2f}" for each in learning)
    yield page, f"Gradient steps take {shallow} of the time of an iteration at depth 4, and {much} at depth 64"
    yield results, f"{of_bound[0]} / {of_bound[1]} of their speed"
    yield results, f"time until the first gradient steps on `ant` at depth 64 | {deep[0]} s"


def physics() -> Texts:
    """Physics alone on two cores."""
    page = "benchmarks/results/physics.md"
    required = {"ant": "9,000", "ant_big_maze": "4,000", "humanoid": "5,000", "arm_push_easy": "1,000"}
    rows = record("physics_wanted.json")["rows"]
    for row in rows:
        steps, own = (f"{row[name]:,.0f}" for name in ("steps/s", "physics steps/s"))
        env = row["environment"]
        yield page, line(f"`{env}`", steps, required[env], own, f"{row['compile s']:.0f}")
    rates = " / ".join(f"{row['steps/s']:,.0f}" for row in rows)
    yield "docs/results.md", f"{rates} environment steps/s"
    rows = record("physics.json")["rows"]
    for env in dict.fromkeys(row["environment"] for row in rows):
        rates = [f"{find(rows, environment=env, worlds=worlds)['steps/s']:,.0f}" for worlds in (64, 512, 4096)]
        yield page, line(f"`{env}`", *rates, find(rows, environment=env, worlds=64)["geoms"])


def first_steps() -> Texts:
    """What an ant learns on two cores."""
    zero, random, trained = record("first_steps.json")["rows"]
    end = "distance at the end"
    figures = f"{trained['touched']:.2f} ± {trained['+-']:.2f}, {trained['stay']:.2f} ± {trained['+- ']:.2f}"
    distance = f"{trained[end]:.2f} ± {trained['+-   ']:.2f} m"
    assert zero["touched"] == random["touched"] == 0
    yield "docs/results.md", f"{figures}, {distance}; {random[end]:.1f} / {zero[end]:.1f} m"


def baselines() -> Texts:
    """SAC and PPO beside contrastive RL, in one row for each algorithm."""
    for algorithm in ("crl", "sac", "ppo"):
        runs = record(f"baselines_{algorithm}.json")["runs"]["point_u_maze, preset"]
        steps = "; ".join(_steps_until_touched(run) for run in runs)
        last = (", ".join(f"{run[name][-1]:.2f}" for run in runs) for name in ("eval/touched", "eval/stay"))
        yield (
            "benchmarks/results/presets.md",
            line(algorithm, steps, *last, ", ".join(f"{run['cpu_s']:.0f}" for run in runs)),
        )


def _steps_until_touched(run: Record) -> str:
    """Return the steps at the first evaluation that touched 0.9 of its goals."""
    evaluations = zip(run["env_steps"], run["eval/touched"], strict=True)
    return next((f"{steps:,}" for steps, touched in evaluations if touched >= 0.9), "never")


def demo() -> Texts:
    """The run of `make demo`."""
    page, found = "benchmarks/results/demo.md", record("demo.json")
    drive = found["drive"]
    yield page, line("stay, mean of 128 episodes", f"{drive['stay']:.3f}")
    yield page, line("share of 128 episodes that touched the goal", f"{drive['touched']:.3f}")
    yield page, line("time at goal", f"{drive['time_at_goal_steps']:.0f} of 100 steps")
    p50, p99 = (f"{drive[f'latency_{rank}_ms']:.1f}" for rank in ("p50", "p99"))
    yield page, line("request latency p50 / p99 (32 robots in one Python process)", f"{p50} / {p99} ms")
    yield page, line("mean batch size", f"{drive['mean_batch_rows']:.1f} rows")
    yield page, line("wall-clock time, without installation", f"{found['wall_s']} s")
    reached = f"{int(drive['version']):,} environment steps"
    yield page, line("training stopped, at its second stay of 0.95 in a row, after", reached)


def example_policy() -> Texts:
    """The policy that ships with the repository: its evaluation in training, and a drive through the server."""
    page, folder = "docs/examples/point_u_maze/README.md", ROOT / "docs/examples/point_u_maze"
    (version,) = folder.glob("[0-9]*")
    evaluated = json.loads((version / "policy.json").read_text())["provenance"]["metrics"]
    driven = json.loads((folder / "driven.json").read_text())
    touched = f"{evaluated['eval/touched_count']} of {evaluated['eval/touched_count'] / evaluated['eval/touched']:.0f}"
    at_goal = f"{evaluated['eval/time_at_goal']:.0f} of 100 steps"
    yield page, line("evaluation in training", f"{evaluated['eval/stay']:.3f}", touched, at_goal)
    touched = f"{driven['touched'] * driven['episodes']:.0f} of {driven['episodes']}"
    at_goal = f"{driven['time_at_goal_steps']:.0f} of 100 steps"
    yield page, line("simulated robots, through the server", f"{driven['stay']:.3f}", touched, at_goal)
    size = sum(path.stat().st_size for path in version.rglob("*") if path.is_file())
    yield page, line("size of its files", f"{size / 1e3:.0f} kB")
    yield page, f"one small policy, version {version.name}"


ALL = (
    *(depth, train_step, memory, resumed, batched_encoders, train_loop, physics, first_steps, baselines, demo),
    example_policy,
)
