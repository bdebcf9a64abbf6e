"""Presets: named values for the settings of a training run, some of which depend on the environment.

`paper` and `training_layouts` repeat published experiments; `training.presets.published` has their figures. The others
are small enough for two CPU cores.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from training.envs.core.errors import UnknownNameError


class Budget(NamedTuple):
    """What a published experiment gave to one environment."""

    env_steps: int
    eval_env: str = ""  # the layout that the policy was evaluated on; empty for the one that it was trained on


# arXiv 2503.14858, figure 1. Environments that are not in it get 100 million steps.
PAPER_BUDGETS: Mapping[str, Budget] = MappingProxyType(
    {
        "humanoid": Budget(100_000_000),
        "ant_big_maze": Budget(100_000_000, "ant_big_maze_eval"),
        "ant_u4_maze": Budget(100_000_000, "ant_u4_maze_eval"),
        "ant_u5_maze": Budget(400_000_000, "ant_u5_maze_eval"),
        "ant_hardest_maze": Budget(200_000_000),
        "arm_push_easy": Budget(100_000_000),
        "arm_push_hard": Budget(100_000_000),
        "arm_binpick_hard": Budget(100_000_000),
        "humanoid_u_maze": Budget(400_000_000),
        "humanoid_big_maze": Budget(400_000_000),
    }
)

_STEPS_PER_EVALUATION = 1_000_000
_PUBLISHED = {"episode_length": 1_000, "rows_per_episode": 2, "max_eval_share": 1.0}

# Many small gradient steps: on a CPU core they learn more in a second than few large ones.
_POINT_MAZE = {
    "num_envs": 16,
    "unroll_length": 10,
    "resample_goal_probability": 0.04,
    "resample_at_goal_probability": 0.25,
    "updates_per_unroll": 128,
    "batch_size": 32,
    "commanded_goals": 0.5,
    "max_replay_size": 1_000,
    "min_replay_size": 200,
    "discount": 0.95,
    "actor_width": 16,
    "critic_width": 16,
    "actor_learning_rate": 1e-3,
    "critic_learning_rate": 1e-3,
    "temperature_learning_rate": 1e-3,
}

# Longer paths need more distant hindsight goals, and a replay buffer that covers the whole maze.
_LARGE_POINT_MAZE = _POINT_MAZE | {
    "unroll_length": 20,
    "batch_size": 64,
    "max_replay_size": 10_000,
    "discount": 0.97,
    "actor_width": 32,
    "critic_width": 32,
}

# Learns to walk within an hour, with commanded goals, a higher target entropy and a faster temperature.
_ANT_ON_TWO_CORES = {
    "num_envs": 256,
    "unroll_length": 50,
    "episode_length": 500,
    "resample_goal_probability": 0.01,
    "commanded_goals": 0.5,
    "updates_per_unroll": 200,
    "batch_size": 256,
    "max_replay_size": 2_000,
    "min_replay_size": 200,
    "discount": 0.97,
    "target_entropy_per_action": 0.0,
    "actor_width": 128,
    "critic_width": 128,
    "actor_learning_rate": 6e-4,
    "critic_learning_rate": 6e-4,
    "temperature_learning_rate": 3e-3,
    "total_env_steps": 25_000_000,
    "num_evals": 62,
    "eval_episodes": 64,
}

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "paper": _PUBLISHED,
        "training_layouts": _PUBLISHED | {"total_env_steps": 100_000_000, "num_evals": 100, "eval_episodes": 100},
        "point_u_maze": _POINT_MAZE
        | {
            "total_env_steps": 320_000,
            "max_minutes": 5.0,
            "target_stay_rate": 0.95,
            "num_evals": 32,
            "eval_episodes": 256,
        },
        "point_big_maze": _LARGE_POINT_MAZE | {"total_env_steps": 640_000, "num_evals": 40},
        "point_hardest_maze": _LARGE_POINT_MAZE | {"total_env_steps": 1_000_000, "num_evals": 60},
        "ant_on_two_cores": _ANT_ON_TWO_CORES,
    }
)


def preset_fields(preset: str, *, env: str, episode_length: int) -> dict[str, Any]:
    """Return the fields of TrainConfig that `preset` sets for the environment `env`.

    Args:
        env: the environment's own name, without the module that registers it.
        episode_length: its usual length of an episode in control steps, which most presets take.

    Raises:
        UnknownNameError: no such preset.
    """
    if preset not in PRESETS:
        raise UnknownNameError("preset", preset, PRESETS)
    fields = {"episode_length": episode_length, **PRESETS[preset]}
    if preset != "paper":
        return fields
    budget = PAPER_BUDGETS.get(env, Budget(100_000_000))
    evaluations = budget.env_steps // _STEPS_PER_EVALUATION
    return fields | {
        "total_env_steps": budget.env_steps,
        "num_evals": evaluations,
        "eval_env": budget.eval_env,
    }
