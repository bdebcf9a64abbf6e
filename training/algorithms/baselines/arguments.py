"""The arguments that brax's SAC and PPO share, by brax's names."""

import functools
from typing import Any

from training.algorithms.baselines.brax_env import wrap
from training.algorithms.baselines.evaluator import Evaluator, evaluations
from training.config import TrainConfig


def shared(config: TrainConfig, evaluator: Evaluator) -> dict[str, Any]:
    """Return the arguments that both trainers take."""
    return {
        "num_timesteps": config.iterations * config.steps_per_iteration,
        "episode_length": config.episode_length,
        "wrap_env_fn": functools.partial(wrap, on_overflow=evaluator.note_overflow),
        "num_envs": config.num_envs,
        "learning_rate": config.actor_learning_rate,
        "discounting": config.discount,
        "seed": config.seed,
        "num_evals": evaluations(config) + 1,  # brax counts one before training
        "max_devices_per_host": 1,
    }
