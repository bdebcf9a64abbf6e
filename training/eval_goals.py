"""Goals to evaluate on, from a file: one goal a row, in the goal's units."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from training.config import ConfigError, TrainConfig
from training.envs.core.goal_env import GoalEnv


def load(config: TrainConfig, env: GoalEnv) -> np.ndarray | None:
    """Return the goals in the file `config.eval_goals`, [goals, goal_dim] float32; None if no file is named.

    A file that ends in .npy has an array [goals, goal_dim]. Any other is a CSV file; its first line may have
    names, none of which is a number.

    Raises:
        ConfigError: the file cannot be read, does not fit `env`, or has more goals than an evaluation has episodes.
    """
    path = config.eval_goals
    if path is None:
        return None
    try:
        goals = np.load(path, allow_pickle=False) if path.suffix == ".npy" else np.array(list(_rows(path)))
        goals = np.asarray(goals, np.float32)
    except Exception as error:  # numpy raises different exceptions for damaged files
        raise ConfigError(f"eval_goals {path} cannot be read: {error}") from error
    names = env.spec.goal_names
    if goals.ndim != 2 or goals.shape[1] != len(names) or not len(goals):
        raise ConfigError(
            f"eval_goals {path} must have a row for each goal, with the {len(names)} values {', '.join(names)}; got "
            f"the shape {list(goals.shape)}"
        )
    if not np.isfinite(goals).all():
        raise ConfigError(f"eval_goals {path} must have finite numbers, but has {goals[~np.isfinite(goals)][0]}")
    if len(goals) > config.eval_episodes:
        raise ConfigError(
            f"eval_goals {path} has {len(goals)} goals, more than eval_episodes {config.eval_episodes}; use "
            f"--eval-episodes {len(goals)}, or a multiple of it"
        )
    return goals


def _rows(path: Path) -> Iterator[list[float]]:
    """Yield the rows of a CSV file, without the first if none of its cells is a number, and without empty ones.

    Raises:
        ValueError: a row has something other than numbers, or another number of them than the first.
    """
    width = 0
    with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets begin a file with a byte order mark
        for row in filter(any, reader := csv.reader(file)):
            if reader.line_num == 1 and not any(map(_is_number, row)):
                continue
            try:
                numbers = [float(cell) for cell in row]
            except ValueError as error:
                raise ValueError(f"line {reader.line_num}: {error}") from error
            width = width or len(numbers)
            if len(numbers) != width:
                raise ValueError(f"line {reader.line_num} has {len(numbers)} values, and the first goal has {width}")
            yield numbers


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
