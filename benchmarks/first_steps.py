"""Compare a briefly trained policy with random actions: which brings the robot closer to its goals?

    python benchmarks/first_steps.py --json first_steps.json

Trains `ant` for a short time with `training/run.py`. Then the newest policy and uniformly random actions run from the
same starts to the same goals. A finished run in the folder is used as it is. An episode ends when the robot falls;
its figures are the distance to the goal at the end, and the smallest distance during the episode.
"""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _record
import jax
import jax.numpy as jnp
import numpy as np
import tyro

from policy import acting, bundle
from training.envs import registry
from training.envs.core.goal_env import GoalEnv, State

ROOT = Path(__file__).resolve().parent.parent
PRESET = "ant_on_two_cores"

Act = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # (states, goals, key) -> actions


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare distances to the goal: trained policy against random actions."""

    json: Path | None = None
    """File for the record."""
    env: str = "ant"
    """Environment to train on."""
    run: Path = Path("runs/first_steps")
    """Folder of the training run. A run found there is not repeated."""
    minutes: float = 90.0
    """Longest training time, in minutes."""
    episodes: int = 512
    """Number of episodes; both see the same starts and goals."""
    steps: int = 200
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
    version = bundle.versions(options.run / "policies")[-1]
    params = bundle.read(options.run / "policies" / str(version)).params
    env = registry.make(options.env)

    def trained(states: jax.Array, goals: jax.Array, key: jax.Array) -> jax.Array:
        del key
        return acting.act(params, states, goals)

    def at_random(states: jax.Array, goals: jax.Array, key: jax.Array) -> jax.Array:
        del goals
        return jax.random.uniform(key, (len(states), env.action_size), minval=-1)

    acts: dict[str, Act] = {"random actions": at_random, f"policy after {version:,} steps": trained}
    rows = [measure(options, env, name, act) for name, act in acts.items()]
    notes = f"{options.env}, {options.episodes} episodes of {options.steps} steps; +- are standard errors"
    _record.report("distance to the goal", rows, about=about, json_file=options.json, notes=notes)


def train(options: Options) -> None:
    """Run the training command; its output is shown."""
    flags = ["--env", options.env, "--preset", PRESET, "--out", str(options.run), "--max-minutes", str(options.minutes)]
    flags += ["--max-eval-share", "1"]
    subprocess.run([sys.executable, str(ROOT / "training" / "run.py"), *flags], check=True)


def measure(options: Options, env: GoalEnv, name: str, act: Act) -> dict[str, Any]:
    """Return one row of the table."""
    starts = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), options.episodes))

    def step(carry: tuple[State, jax.Array], key: jax.Array) -> tuple[tuple[State, jax.Array], tuple[jax.Array, ...]]:
        robots, alive = carry
        robots = jax.vmap(env.step)(robots, act(robots.info["state"], robots.info["goal"], key))
        counted = alive, robots.metrics["distance"]
        return (robots, alive & (robots.done == 0)), counted

    keys = jax.random.split(jax.random.key(1), options.steps)
    began = starts, jnp.ones(options.episodes, bool)
    alive, distance = (np.asarray(column) for column in jax.jit(lambda: jax.lax.scan(step, began, keys)[1])())
    life = alive.sum(axis=0)
    ended = distance[life - 1, np.arange(options.episodes)]
    nearest = np.where(alive, distance, np.inf).min(axis=0)
    return {
        "actions": name,
        "distance at the end": float(ended.mean()),
        "+-": _standard_error(ended),
        "nearest": float(nearest.mean()),
        "+- ": _standard_error(nearest),
        "steps until fall": float(life.mean()),
    }


def _standard_error(figures: np.ndarray) -> float:
    return float(figures.std(ddof=1) / len(figures) ** 0.5)


if __name__ == "__main__":
    main()
