"""eval_goals/<environment steps>.csv: what an evaluation found for each of the goals that it was given."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from policy import whole_file
from training.config import TrainConfig
from training.evaluation import Evaluation

FOLDER = "eval_goals"
_FIGURES = ("stay", "touched", "time_at_goal", "final_distance", "reached_at_reset", "terminated", "steps", "diverged")


def write(config: TrainConfig, evaluation: Evaluation, *, env_steps: float, goal_names: Sequence[str]) -> Path | None:
    """Write one row for each goal into the run's folder: the goal, its episodes, and their means; return the file.

    The goals are in the order of the file that they come from. Without `config.eval_goals`, write nothing and return
    None.

    Args:
        env_steps: of the policy.

    Raises:
        OSError: the file cannot be written.
    """
    if config.eval_goals is None:
        return None
    path = config.out / FOLDER / f"{env_steps:.0f}.csv"
    path.parent.mkdir(exist_ok=True)
    figures = {name: np.asarray(getattr(evaluation, name), np.float64) for name in _FIGURES}
    commanded = np.asarray(evaluation.goal)
    _, first, of_goal = np.unique(commanded, axis=0, return_index=True, return_inverse=True)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*goal_names, "episodes", *_FIGURES])
    for index in np.argsort(first):
        rows = of_goal.reshape(-1) == index
        means = (f"{values[rows].mean():.6g}" for values in figures.values())
        table.writerow([*(f"{value:.7g}" for value in commanded[first[index]]), rows.sum(), *means])
    whole_file.write(path, text.getvalue())
    return path
