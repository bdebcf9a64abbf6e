"""Lines about what a run costs: device, disk, steps per second and time; and what would be cheaper."""

import functools
import math
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from training.budgets.time_budget import TimeBudget, in_words
from training.config import ConfigError, TrainConfig
from training.envs.registry import bare_name
from training.presets.settings import PRESETS

_SNAPSHOTS = 2  # that are kept; a third one is there while it is written
_ALSO_KEPT = 2  # policies: the best one, and the newest one before an older one is deleted
_LONG_S = 86_400
_NOTABLE_S = 3600
_WALKERS = ("ant", "humanoid", "cheetah")


def before_start(config: TrainConfig) -> list[str]:
    """Return the first lines of a run: its device, a GPU that is not used, and the cost of a preset not chosen."""
    lines = [f"device: {device()}"]
    if unused := unused_gpu(jax.local_devices()[0].platform):
        lines.append(f"warning: {unused}")
    if advice := preset_advice(config):
        lines.append(advice)
    return lines


def device() -> str:
    """Return the name of the device that computes."""
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return f"CPU, {cores} cores"
    return f"{devices[0].device_kind} ({devices[0].platform})"


def require_device(config: TrainConfig) -> None:
    """Refuse a precision that is slow on this device, unless `config` allows it.

    Raises:
        ConfigError: bf16 on a CPU.
    """
    if config.precision == "bf16" and jax.default_backend() == "cpu" and not config.allow_bf16_on_cpu:
        raise ConfigError(
            "precision bf16 is slower than f32 on a CPU, which has no bf16 arithmetic; use --precision f32, or add "
            "--allow-bf16-on-cpu to try it"
        )


def preset_advice(config: TrainConfig) -> str:
    """Return a line for an environment that has no preset of its own and takes the paper's; empty for others."""
    if config.preset != "paper" or config.env in PRESETS:
        return ""
    return (
        f"{bare_name(config.env)} has no preset of its own. Preset paper takes {config.total_env_steps:,} environment "
        "steps and is made for a GPU; the time it takes here is printed once it is measured. A small preset to try "
        f"first: --preset {small_preset(config.env)}"
    )


def small_preset(env: str) -> str:
    """Return the preset for two cores that fits `env` best."""
    return "ant_on_two_cores" if bare_name(env).startswith(_WALKERS) else "point_u_maze"


def unused_gpu(platform: str, *, root: Path = Path("/")) -> str:
    """Return a warning if JAX computes on `platform` although the machine has an NVIDIA GPU; empty if not.

    Args:
        root: of the file system with the device files.
    """
    present = (root / "dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None
    if platform != "cpu" or not present or os.environ.get("JAX_PLATFORMS") == "cpu":
        return ""
    return (
        "this machine has an NVIDIA GPU, but JAX computes on the CPU; install requirements/cuda13.txt as "
        "docs/training.md describes, or set JAX_PLATFORMS=cpu if that is intended"
    )


def disk(config: TrainConfig, params: Any, *, snapshot: Any) -> str:
    """Return how much disk a run needs at most, how much is free, and a warning if that is less.

    Args:
        params: of the policy, arrays or their shapes.
        snapshot: the state that a snapshot holds, arrays or their shapes.
    """
    snapshots = (_SNAPSHOTS + 1) * bytes_of(snapshot)
    evaluations = math.ceil(config.iterations / config.iterations_per_epoch)
    kept = min(evaluations, config.keep_policies + _ALSO_KEPT) if config.keep_policies else evaluations
    policies = kept * bytes_of(params)
    folder = next(folder for folder in (config.out.absolute(), *config.out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(folder).free
    needs = f"disk: up to {_size(snapshots)} for snapshots and {_size(policies)} for {kept} policies"
    advice = (
        ". WARNING: that is less. Free some space, lower --keep-policies or --max-replay-size, or leave the replay "
        "buffer out of snapshots with --no-snapshot-replay"
    )
    return f"{needs}; {_size(free)} are free{advice if snapshots + policies > free else ''}"


def bytes_of(tree: Any) -> int:
    """Return the bytes of all arrays, or of arrays of the shapes, in `tree`; random keys count with their data."""
    is_key = functools.partial(jnp.issubdtype, arg2=jax.dtypes.prng_key)
    leaves = [
        jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf.dtype) else leaf for leaf in jax.tree.leaves(tree)
    ]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


class CostReport:
    """Lines about the cost of a run, each given once, as soon as it is measured."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._told: set[str] = set()

    def after_training(self, budget: TimeBudget, *, done: int, pending_updates: int) -> list[str]:
        """Return the lines about time that are due after an unroll or a slice of gradient steps."""
        config, lines = self._config, list[str]()
        left_s = budget.left_s(done=done, pending_updates=pending_updates)
        if left_s is None:
            alone_s = (config.iterations - done) * config.steps_per_iteration / (budget.steps_per_s or math.inf)
            if _NOTABLE_S <= alone_s <= budget.limit_left_s and self._first("physics"):
                lines.append(
                    f"{config.total_env_steps:,} environment steps take {in_words(alone_s)} or more here, before any "
                    f"gradient step{self._advice(alone_s)}"
                )
        elif budget.knows_updates and budget.steps_per_s is not None and self._first("time"):
            steps = (config.iterations - done) * config.steps_per_iteration
            whole_s = budget.to_the_end_s(done=done, pending_updates=pending_updates)
            lines.append(
                f"about {budget.steps_per_s:,.0f} environment steps/s; the remaining {steps:,} steps "
                + self._forecast(whole_s, budget.limit_left_s)
            )
        return lines

    def evaluation_skipped(self, budget: TimeBudget) -> list[str]:
        """Return the lines that are due when an evaluation was left out."""
        if not self._first("skipped"):
            return []
        return [
            f"an evaluation takes about {in_words(budget.evaluation_s)}; there are fewer than --num-evals "
            f"{self._config.num_evals}, so that they take at most {self._config.max_eval_share:.0%} of the run "
            "(--max-eval-share)"
        ]

    def _forecast(self, whole_s: float, limit_left_s: float) -> str:
        """Return the end of a sentence about the remaining steps."""
        if whole_s <= limit_left_s:
            return f"take about {in_words(whole_s)}{self._advice(whole_s)}"
        return f"would take about {in_words(whole_s)}, but --max-minutes ends the run in {in_words(limit_left_s)}"

    def _advice(self, seconds: float) -> str:
        if seconds < _LONG_S or self._config.max_minutes < math.inf:
            return ""
        return (
            f". WARNING: that is days. Lower --total-env-steps, set --max-minutes, use a GPU, or try --preset "
            f"{small_preset(self._config.env)}"
        )

    def _first(self, what: str) -> bool:
        first = what not in self._told
        self._told.add(what)
        return first


def _size(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"
