"""Measure the parts of `make demo`: installation, compilation, physics, gradient steps, evaluation, serving.

    python benchmarks/loop_parts.py --json loop_parts.json

Each part is timed separately with the preset of the demonstration, and multiplied by the number of times it occurs in
a run that uses all its environment steps. A run that reaches its goals ends earlier. All parts are measured one after
another on one machine, so their fractions can be compared.
"""

import dataclasses
import itertools
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _record
import jax
import jax.numpy as jnp
import tyro

from clients.sim import fleet
from kilolayer import PolicyClient
from training.config import TrainConfig
from training.envs import registry
from training.envs.core.goal_env import GoalEnv
from training.programs import RunState, compile_programs, initial_state
from training.run_dir import checkpoint, publish

ROOT = Path(__file__).resolve().parent.parent
ENV = "point_u_maze"
ROBOTS, EPISODES = 32, 128


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure the parts of `make demo`."""

    json: Path | None = None
    """File for the record."""
    install: bool = True
    """Also time the installation into a new virtual environment, which needs a package index."""
    repeats: int = 9
    """Number of repetitions of each part. Figures are medians."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of the demonstration."""

    name: str
    seconds: float  # for one occurrence
    times: int  # occurrences in a full run
    rate: float | None = None  # in `unit` per second
    unit: str = ""


def main() -> None:
    """Measure, and write the record."""
    options = tyro.cli(Options)
    about = _record.machine()
    with tempfile.TemporaryDirectory() as scratch:
        parts = [install(Path(scratch))] if options.install else []
        config = TrainConfig(env=ENV, out=Path(scratch) / "run")
        parts += training_parts(config, repeats=options.repeats)
        parts += serving_parts(config)
    whole = sum(part.seconds * part.times for part in parts)
    rows = [row(part, whole) for part in parts]
    rows.append({"part": "together", "seconds each": None, "times": None, "seconds": whole, "share": 1.0, "rate": ""})
    _record.report(
        f"parts of make demo ({ENV}, {config.total_env_steps:,} environment steps)",
        rows,
        about=about,
        json_file=options.json,
        notes=f"a run that has an eval/stay of {config.target_stay_rate:g} earlier has fewer iterations",
    )


def row(part: Part, whole: float) -> dict[str, Any]:
    """Return one row of the table."""
    seconds = part.seconds * part.times
    return {
        "part": part.name,
        "seconds each": part.seconds,
        "times": part.times,
        "seconds": seconds,
        "share": seconds / whole,
        "rate": f"{part.rate:,.0f} {part.unit}/s" if part.rate else "",
    }


def install(scratch: Path) -> Part:
    """Time the installation of the locked packages into a new virtual environment."""
    began = time.perf_counter()
    environment = scratch / "venv"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    pip = [environment / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--require-hashes", "-r", ROOT / "requirements" / "cpu.txt"], check=True)
    return Part("install", time.perf_counter() - began, 1)


def training_parts(config: TrainConfig, *, repeats: int) -> list[Part]:
    """Measure the parts of training. The policies published here are served afterwards."""
    began = time.perf_counter()
    env = registry.make(config.env)
    state = initial_state(config, env)
    prepare = time.perf_counter() - began
    programs, compiling = _record.timed(lambda: compile_programs(config, env, state))
    key, round_size = jax.random.key(0), jnp.int32(config.updates_per_unroll)
    for _ in range(config.warmup_iterations):
        state = programs.collect(state)
    collects, learns, evaluations, keepings = [], [], [], []
    for _ in range(repeats):
        state, seconds = _record.timed(lambda state=state: programs.collect(state))
        collects.append(seconds)
        (state, _), seconds = _record.timed(lambda state=state: programs.learn(state, round_size))
        learns.append(seconds)
        _, seconds = _record.timed(lambda state=state: programs.evaluate(state.train_state.params, key=key))
        evaluations.append(seconds)
        _, seconds = _record.timed(lambda state=state: keep(config, env, state))
        keepings.append(seconds)
    collect, learn, evaluation, keeping = (
        statistics.median(times) for times in (collects, learns, evaluations, keepings)
    )
    epochs = -(-config.iterations // config.iterations_per_epoch)
    rounds = config.iterations - config.warmup_iterations
    return [
        Part("prepare training", prepare, 1),
        Part("compile training", compiling, 1),
        Part("physics and acting", collect, config.iterations, config.steps_per_iteration / collect, "steps"),
        Part("gradient steps", learn, rounds, config.updates_per_unroll / learn, "updates"),
        Part("evaluation", evaluation, epochs, config.eval_episodes * config.episode_length / evaluation, "steps"),
        Part("snapshot and publication", keeping, epochs),
    ]


def keep(config: TrainConfig, env: GoalEnv, state: RunState) -> None:
    """Save a snapshot and publish the policy, as after every evaluation."""
    checkpoint.save(config.out / "snapshots", int(state.iteration), state=state)
    env_steps = int(state.iteration) * config.steps_per_iteration
    publish.publish(config, env, state.train_state.params, statistics=state.statistics, env_steps=env_steps, metrics={})


def serving_parts(config: TrainConfig) -> list[Part]:
    """Measure the start of the server, and the rollouts of the simulated robots."""
    began = time.perf_counter()
    command = [
        "serving/run.py",
        "--policies",
        str(config.out / "policies"),
        "--listen",
        "127.0.0.1:0",
        "--metrics-port",
        "0",
        "--no-metrics",
    ]
    server = subprocess.Popen([sys.executable, *command], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        address = ready_address(server)
        start = time.perf_counter() - began
        env = registry.make(config.env)
        pilots = [PolicyClient(address) for _ in range(ROBOTS)]
        length = env.spec.episode_length
        # Every rollout compiles the physics. A rollout of one step measures this fixed cost.
        _, short = _record.timed(lambda: drive_round(env, pilots, steps=1))
        _, whole = _record.timed(lambda: drive_round(env, pilots, steps=length))
        for pilot in pilots:
            pilot.close()
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=30)
    moving, requests = whole - short, (length - 1) * ROBOTS
    return [
        Part("start serving", start, 1),
        Part("prepare the drive", short, 1),
        Part(f"drive an episode of {ROBOTS} robots", moving, EPISODES // ROBOTS, requests / moving, "requests"),
    ]


def drive_round(env: GoalEnv, pilots: list[PolicyClient], *, steps: int) -> list[fleet.Episode]:
    """Run one episode of every robot."""
    return list(fleet.drive(env, pilots, key=jax.random.key(0), episodes=len(pilots), episode_length=steps))


def ready_address(server: subprocess.Popen[str]) -> str:
    """Wait for the server's ready line; return its address."""
    lines: Iterator[str] = itertools.chain(server.stderr or ())
    for line in lines:
        if found := re.search(r"ready: grpc=(\S+)", line):
            return found.group(1)
    raise RuntimeError("the server ended before it was ready")


if __name__ == "__main__":
    main()
