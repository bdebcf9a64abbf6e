"""Where the time of `make demo` goes: install, compile, physics, gradient steps, evaluation, serving.

    python benchmarks/loop_parts.py --json loop_parts.json

Every part is timed by itself, on the preset that the demonstration uses, and multiplied by how often a run that uses
its whole budget of environment steps has it; a run that reaches its goals earlier ends earlier. Everything is measured
in one process after another on one machine, so that the shares can be compared.
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
import tyro

from clients.sim import fleet
from kilolayer import PolicyClient
from training import trainer
from training.config import TrainConfig, preset_config
from training.envs import registry
from training.envs.core.goal_env import GoalEnv
from training.run_dir import checkpoint, publish

ROOT = Path(__file__).resolve().parent.parent
ENV = "point_u_maze"
ROBOTS, EPISODES = 32, 128


@dataclasses.dataclass(frozen=True)
class Options:
    """Where the time of `make demo` goes."""

    json: Path | None = None
    """File for the record."""
    install: bool = True
    """Whether to time the installation into a fresh virtual environment, which needs a package index."""
    repeats: int = 9
    """Times each repeated part is run; the median counts."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of the demonstration."""

    name: str
    seconds: float  # one time
    times: int  # how often a whole run has it
    rate: float | None = None  # of what `unit` names, per second
    unit: str = ""


def main() -> None:
    """Measure and publish."""
    options = tyro.cli(Options)
    about = _record.machine()
    with tempfile.TemporaryDirectory() as scratch:
        parts = [install(Path(scratch))] if options.install else []
        config = preset_config(ENV, out=Path(scratch) / "run")
        parts += training_parts(config, repeats=options.repeats)
        parts += serving_parts(config)
    whole = sum(part.seconds * part.times for part in parts)
    rows = [row(part, whole) for part in parts]
    rows.append({"part": "together", "seconds each": None, "times": None, "seconds": whole, "share": 1.0, "rate": ""})
    _record.publish(
        f"where the time of make demo goes ({ENV}, {config.total_env_steps:,} environment steps)",
        rows,
        about=about,
        json_file=options.json,
        notes=f"a run that reaches {config.stop_at_success_rate:g} of its goals earlier has fewer iterations",
    )


def row(part: Part, whole: float) -> dict[str, Any]:
    """One line of the table."""
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
    """A fresh virtual environment from the lock."""
    began = time.perf_counter()
    environment = scratch / "venv"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    pip = [environment / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--require-hashes", "-r", ROOT / "requirements" / "cpu.txt"], check=True)
    return Part("install", time.perf_counter() - began, 1)


def training_parts(config: TrainConfig, *, repeats: int) -> list[Part]:
    """The parts of training; the policies published meanwhile are left for serving."""
    began = time.perf_counter()
    env = registry.make(config.env)
    state = trainer.initial_state(config, env)
    prepare = time.perf_counter() - began
    programs, compiling = _record.timed(lambda: trainer.compile_programs(config, env, state))
    key = jax.random.key(0)
    for _ in range(config.warmup_iterations):
        state = programs.collect(state)
    collects, learns, evaluations, keepings = [], [], [], []
    for _ in range(repeats):
        state, seconds = _record.timed(lambda state=state: programs.collect(state))
        collects.append(seconds)
        (state, _), seconds = _record.timed(lambda state=state: programs.learn(state))
        learns.append(seconds)
        _, seconds = _record.timed(lambda state=state: programs.evaluate(state.train_state.params.actor, key=key))
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


def keep(config: TrainConfig, env: GoalEnv, state: trainer.RunState) -> None:
    """What follows an evaluation: a snapshot, and a published policy."""
    checkpoint.save(config.out / "snapshots", int(state.iteration), state=state)
    publish.publish(config, env, state.train_state.params, iteration=int(state.iteration), metrics={})


def serving_parts(config: TrainConfig) -> list[Part]:
    """The server from start to ready, and the drive."""
    began = time.perf_counter()
    command = ["serving/run.py", "--policies", str(config.out / "policies"), "--port", "0", "--no-metrics"]
    server = subprocess.Popen([sys.executable, *command], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        address = ready_address(server)
        start = time.perf_counter() - began
        env = registry.make(config.env)
        pilots = [PolicyClient(address) for _ in range(ROBOTS)]
        length = env.spec.episode_length
        # every drive compiles its physics, so a short one is what a long one costs besides its steps
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
    """One episode of every robot."""
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
