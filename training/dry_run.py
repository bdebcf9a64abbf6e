"""Describe what a training command will do, and the published figure to compare it with, without training."""

import dataclasses
import math

from training import evaluation, memory_budget
from training.config import TrainConfig
from training.envs import registry
from training.published import PUBLISHED, Published

# Fields that may differ from the preset in a run that is compared with a published figure.
_FREE = frozenset(
    {
        *("actor_depth", "critic_depth", "seed", "out", "name", "impl", "precision", "allow_bf16_on_cpu"),
        *("remat", "snapshot_replay", "max_eval_share", "resume", "overwrite"),
    }
)


def describe(config: TrainConfig) -> list[str]:
    """Return lines that say what `config` trains, for how long, on which networks, and what was published for it.

    Raises:
        ConfigError, EnvError, SpecError: the environments do not fit each other, or one of them cannot be built.
    """
    env = registry.make(config.env, impl=config.impl)
    evaluation.make_env(config, env)
    spec = config.policy_spec(env)
    evaluations = math.ceil(config.iterations / config.iterations_per_epoch)
    steps = config.iterations * config.steps_per_iteration
    replay = memory_budget.estimate(config, env).replay
    parts = {
        "environment": f"{config.env}: {spec.state_dim} state, {spec.goal_dim} goal, {spec.action_dim} action values",
        "evaluated on": f"{config.eval_env or config.env}, {evaluations:,} times, {config.eval_episodes:,} episodes of "
        f"{config.episode_length:,} steps",
        "environment steps": f"{steps:,}: {config.iterations:,} iterations of {config.num_envs:,} environments x "
        f"{config.unroll_length:,} steps",
        "gradient steps": f"{config.gradient_steps:,} of {config.batch_size:,} rows",
        "networks": f"actor depth {config.actor_depth}, width {config.actor_width}; critic depth "
        f"{config.critic_depth}, width {config.critic_width}",
        "replay buffer": f"{config.min_replay_size:,} to {config.max_replay_size:,} steps of each environment, "
        f"{replay / 1e9:.2f} GB",
        "published": _published(config),
    }
    return [f"{name:<18} {text}" for name, text in parts.items()]


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
