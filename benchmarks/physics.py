"""Measure the physics of each environment: random actions in many worlds, without learning or a replay buffer.

    python benchmarks/physics.py --json physics.json

Figures are environment steps per second, summed over all worlds, without compilation. Each environment and number of
worlds has one compiled unroll, and the figure is the median of its runs.
"""

import dataclasses
import statistics
import sys
from pathlib import Path
from typing import Any

import _record
import jax
import train_step
import tyro

from training.envs import registry


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure the environment steps per second of physics alone."""

    json: Path | None = None
    """File for the record."""
    envs: tuple[str, ...] = (
        *("point_u_maze", "point_hardest_maze", "ant", "ant_u_maze", "ant_big_maze", "ant_ball", "ant_push"),
        *("humanoid", "humanoid_u_maze", "humanoid_big_maze", "arm_reach", "arm_push_easy", "arm_binpick_hard"),
        *("reacher", "pusher_easy", "cheetah"),
    )
    """Environments to measure."""
    worlds: train_step.Depths = (64, 512, 4096)
    """Numbers of parallel worlds, measured one after another."""
    physics: str = "jax"
    """Implementation of the physics: jax or warp."""
    steps: int = 20
    """Steps of every world in a run, for up to 1024 worlds. More worlds take fewer steps, but at least five."""
    repeats: int = 5
    """Number of runs. Figures are medians over runs."""
    quick: bool = False
    """One environment, few worlds and steps: checks that the script works; the figures mean nothing."""


def main() -> None:
    """Measure, and write the record."""
    options = tyro.cli(Options)
    if options.quick:
        options = dataclasses.replace(options, envs=("point_u_maze",), worlds=(4,), steps=2, repeats=2)
    about = _record.machine()
    rows = [measure(options, env, worlds) for env in options.envs for worlds in options.worlds]
    steps = f"{options.steps} steps a run, fewer above 1024 worlds"
    notes = f"impl {options.physics}, random actions, {steps}, medians of {options.repeats}"
    _record.report("physics alone", rows, about=about, json_file=options.json, notes=notes)


def measure(options: Options, name: str, worlds: int) -> dict[str, Any]:
    """Return one row of the table."""
    print(f"{name}, {worlds} worlds ...", file=sys.stderr)
    env = registry.make(name, impl=options.physics)
    steps = min(options.steps, max(5, options.steps * 1024 // worlds))

    def step(robots: Any, key: jax.Array) -> tuple[Any, None]:
        actions = jax.random.uniform(key, (worlds, env.action_size), minval=-1)
        return jax.vmap(env.step)(robots, actions), None

    def unroll(robots: Any, key: jax.Array) -> Any:
        return jax.lax.scan(step, robots, jax.random.split(key, steps))[0]

    robots = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), worlds))
    compiled, seconds = _record.timed(lambda: jax.jit(unroll).lower(robots, jax.random.key(1)).compile())
    robots = jax.block_until_ready(compiled(robots, jax.random.key(1)))
    runs: list[float] = []
    for key in jax.random.split(jax.random.key(2), options.repeats):
        robots, took = _record.timed(lambda robots=robots, key=key: compiled(robots, key))
        runs.append(worlds * steps / took)
    return {
        "environment": name,
        "worlds": worlds,
        "steps/s": statistics.median(runs),
        "physics steps/s": statistics.median(runs) * env.substeps,
        "geoms": env.model.ngeom,
        "compile s": seconds,
    }


if __name__ == "__main__":
    main()
