"""Describe what a training command will do, and the published figure to compare it with, without training."""

import dataclasses
import functools
import math

import jax

from training import evaluation
from training.budgets import memory_budget, run_cost
from training.budgets.time_budget import in_words
from training.config import TrainConfig
from training.envs import registry
from training.envs.core.goal_env import GoalEnv
from training.presets.published import PUBLISHED, Published
from training.programs import initial_state, saved_part
from training.run_dir import checkpoint, config_file, elapsed, finished, lock

# Fields that may differ from the preset in a run that is compared with a published figure.
_FREE = frozenset(
    {
        *("actor_depth", "critic_depth", "seed", "out", "name", "impl", "precision", "allow_bf16_on_cpu"),
        *("remat", "snapshot_replay", "snapshot_minutes", "keep_policies", "max_eval_share", "resume", "overwrite"),
    }
)


def describe(config: TrainConfig, *, is_folder_given: bool) -> list[str]:
    """Return lines that say what `config` trains, on which networks, what was published for it, and what it costs.

    The costs are those of the first lines of a run, as far as they are known without compiling anything. If the run to
    resume is finished, the only line says so.

    Args:
        is_folder_given: whether the command names its folder, so that what is in it counts.

    Raises:
        ConfigError, EnvError, SpecError: the environments do not fit each other, or one of them cannot be built.
        RunDirError: the command would refuse the folder.
        MetricsError, OSError: a file of the run to resume cannot be read.
    """
    if is_folder_given:
        lock.require_usable(config)
        if config.resume and (ended := finished.describe(config)):
            return [_line("run", ended)]
    env = registry.make(config.env, impl=config.impl)
    evaluation.make_env(config, env)
    spec = config.policy_spec(env)
    evaluations = math.ceil(config.iterations / config.iterations_per_epoch)
    steps = config.iterations * config.steps_per_iteration
    memory = memory_budget.estimate(config, env)
    parts = {
        "run": _run(config) if is_folder_given else "",
        "environment": f"{config.env}: {spec.state_dim} state, {spec.goal_dim} goal, {spec.action_dim} action values",
        "evaluated on": f"{config.eval_env or config.env}, {evaluations:,} times, {config.eval_episodes:,} episodes of "
        f"{config.episode_length:,} steps",
        "environment steps": f"{steps:,}: {config.iterations:,} iterations of {config.num_envs:,} environments x "
        f"{config.unroll_length:,} steps",
        "gradient steps": f"{config.gradient_steps:,} of {config.batch_size:,} rows",
        "networks": f"actor depth {config.actor_depth}, width {config.actor_width}; critic depth "
        f"{config.critic_depth}, width {config.critic_width}",
        "replay buffer": f"{config.min_replay_size:,} to {config.max_replay_size:,} steps of each environment, "
        f"{memory.replay / 1e9:.2f} GB",
        "published": _published(config),
        "device": run_cost.device(),
        "memory": f"{memory.total / 1e9:.2f} GB of {memory_budget.device_memory() / 1e9:.2f} GB",
        "disk": _disk(config, env),
        "time": _time(config, earlier_s=elapsed.read(config.out).total_s if is_folder_given else 0.0),
        "warning": run_cost.unused_gpu(jax.local_devices()[0].platform),
        "too large": memory_budget.advice(config, env) if memory.total > memory_budget.device_memory() else "",
        "advice": run_cost.preset_advice(config),
    }
    return [_line(name, text) for name, text in parts.items() if text]


def _line(name: str, text: str) -> str:
    return f"{name:<18} {text}"


def _run(config: TrainConfig) -> str:
    """Return where the run begins, or from which snapshot it continues."""
    if config.resume and (iteration := checkpoint.latest(config.out / "snapshots")) is not None:
        return f"continues from {config.out / 'snapshots' / str(iteration)}, of {config.iterations:,} iterations"
    replaces = config.overwrite and (config.out / config_file.NAME).exists()
    return f"replaces the one in {config.out}" if replaces else f"begins in {config.out}"


def _disk(config: TrainConfig, env: GoalEnv) -> str:
    """Return how much disk a run needs at most, and how much is free, from the shapes of its arrays."""
    if config.algorithm != "crl":
        return "a baseline saves no snapshots and publishes no policy"
    state = jax.eval_shape(functools.partial(initial_state, config, env))
    return run_cost.disk(config, state.train_state.params, snapshot=saved_part(config, state)).removeprefix("disk: ")


def _time(config: TrainConfig, *, earlier_s: float) -> str:
    """Return what is known of the time that a run takes before it has run.

    Args:
        earlier_s: seconds of earlier processes of the run; with `resume` auto they count towards the time limit.
    """
    measured = "printed by the run, once it has measured its first iterations"
    if math.isinf(config.max_minutes):
        return measured
    limit_s, counted_s = config.max_minutes * 60, earlier_s if config.resume == "auto" else 0.0
    why = f"--max-minutes, less {in_words(counted_s)} that the run has taken" if counted_s else "--max-minutes"
    return f"at most {in_words(max(0.0, limit_s - counted_s))} ({why}); a forecast is {measured}"


def _published(config: TrainConfig) -> str:
    """Return the published figure to compare a run of `config` with, or why there is none."""
    figures: Published | None = PUBLISHED.get(config.preset, {}).get(registry.bare_name(config.env))
    if figures is None:
        return f"no figure for preset {config.preset} on {config.env}"
    changed = _changes(config)
    if changed:
        return f"not comparable: this command differs from preset {config.preset} in {', '.join(changed)}"
    name, depth = f"{figures.title}, {figures.source}", config.actor_depth
    if config.actor_depth != config.critic_depth or depth not in figures.time_at_goal:
        known = ", ".join(map(str, figures.time_at_goal))
        return f"no figure for this depth ({name}: actor and critic of depth {known})"
    return f"time at goal {figures.time_at_goal[depth]:g} of 1000 steps at depth {depth} ({name})"


def _changes(config: TrainConfig) -> list[str]:
    """Return the settings in which `config` differs from its preset, with both values."""
    usual = TrainConfig(env=config.env, out=config.out, preset=config.preset)
    pairs = {
        field.name: (getattr(config, field.name), getattr(usual, field.name))
        for field in dataclasses.fields(config)
        if field.name not in _FREE
    }
    return [
        f"{name} {now or 'none'} (preset: {before or 'none'})" for name, (now, before) in pairs.items() if now != before
    ]
