"""Compare a briefly trained policy with random and zero actions: which brings the robot to its goals?

    python benchmarks/first_steps.py --json first_steps.json

Trains `ant` for an hour with `training/run.py`. Then the version with the highest stay, uniformly random actions and
zero actions run from the same starts to the same goals. A finished run in the folder is used as it is. The figures are
those of `training.evaluation`: an episode counts until the robot falls.
"""

import dataclasses
import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import _record
import jax
import jax.numpy as jnp
import numpy as np
import tyro

from policy import bundle
from training.envs import registry
from training.evaluation import POLICY, RANDOM_ACTIONS, ZERO_ACTIONS, ActionSource, Evaluation, evaluate
from training.run_dir import best

ROOT = Path(__file__).resolve().parent.parent
PRESET = "ant_on_two_cores"


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare distances to the goal: trained policy against random actions."""

    json: Path | None = None
    """File for the record."""
    env: str = "ant"
    """Environment to train on."""
    run: Path = Path("runs/first_steps")
    """Folder of the training run. A run found there is not repeated."""
    minutes: float = 60.0
    """Longest training time, in minutes."""
    episodes: int = 512
    """Number of episodes; all see the same starts and goals."""
    steps: int = 500
    """Control steps per episode."""
    quick: bool = False
    """A point maze, a minute of training, few episodes: checks that the script works; the figures mean nothing."""


def main() -> None:
    """Train, compare, and write the record."""
    options = tyro.cli(Options)
    if options.quick:
        options = dataclasses.replace(options, env="point_u_maze", minutes=0.5, episodes=8, steps=20)
    about = _record.machine()
    if not bundle.versions(options.run / "policies"):
        train(options)
    version = best.best_version(options.run / "policies")
    params = bundle.read(options.run / "policies" / str(version)).params
    run = jax.jit(
        functools.partial(evaluate, registry.make(options.env), episodes=options.episodes, episode_length=options.steps)
    )
    sources = {"zero actions": ZERO_ACTIONS, "random actions": RANDOM_ACTIONS}
    rows: list[dict[str, Any]] = []
    for name, kind in (sources | {f"policy after {version:,} steps": POLICY}).items():
        source = ActionSource(jnp.full(options.episodes, kind, jnp.int32), jax.random.key(1))
        rows.append(row(name, run(params, key=jax.random.key(0), source=source)))
    notes = f"{options.env}, {options.episodes} episodes of {options.steps} steps; +- are standard errors"
    _record.report("reaching goals", rows, about=about, json_file=options.json, notes=notes)


def train(options: Options) -> None:
    """Run the training command; its output is shown."""
    flags = ["--env", options.env, "--preset", PRESET, "--out", str(options.run), "--max-minutes", str(options.minutes)]
    flags += ["--max-eval-share", "1"]
    subprocess.run([sys.executable, str(ROOT / "training" / "run.py"), *flags], check=True)


def row(actions: str, found: Evaluation) -> dict[str, Any]:
    """Return one row of the table."""
    columns = {
        "touched": found.touched,
        "stay": found.stay,
        "steps at goal": found.time_at_goal,
        "distance at the end": found.final_distance,
    }
    figures: dict[str, Any] = {"actions": actions}
    for number, (name, values) in enumerate(columns.items()):
        figures |= {name: float(np.mean(values)), f"+-{' ' * number}": _standard_error(np.asarray(values, np.float64))}
    return figures | {"ended early": float(np.mean(found.terminated)), "steps": float(np.mean(found.steps))}


def _standard_error(figures: np.ndarray) -> float:
    return float(figures.std(ddof=1) / len(figures) ** 0.5)


if __name__ == "__main__":
    main()
