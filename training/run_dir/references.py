"""references.json: how often random actions and zero actions reach the goals, to compare a policy with.

Measured once in a run, by the program that evaluates the policy: half of the episodes have random actions, uniform in
[-1, 1] at every step, the others zero actions, the middle of the actions' range.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from policy import whole_file
from policy.networks import PolicyParams
from training import evaluation
from training.config import TrainConfig

NAME = "references.json"
_KINDS = {"random_actions": evaluation.RANDOM_ACTIONS, "zero_actions": evaluation.ZERO_ACTIONS}

References = dict[str, dict[str, float]]  # figures of an evaluation by their name in metrics.jsonl, for each kind


def measure_once(
    config: TrainConfig,
    evaluate: Callable[..., evaluation.Evaluation],
    params: PolicyParams,
    *,
    clock: Callable[[], float],
) -> float:
    """Evaluate both, unless that was done before in this run; return how many seconds it took.

    Without an episode for each of them, do nothing.

    Args:
        evaluate: as `Programs.evaluate`.
        params: of any policy; they do not matter.

    Raises:
        OSError: the file cannot be written.
    """
    began = clock()
    if config.eval_episodes >= len(_KINDS) and read(config.out) is None:
        _measure(config, evaluate, params)
    return clock() - began


def _measure(config: TrainConfig, evaluate: Callable[..., evaluation.Evaluation], params: PolicyParams) -> None:
    """Evaluate both with one call of the program, and write the file into the run's folder."""
    kind = np.resize(list(_KINDS.values()), config.eval_episodes)
    key, noise_key = jax.random.split(evaluation.evaluation_key(config.seed, 2**32 - 1))
    found = evaluate(params, key=key, source=evaluation.ActionSource(jnp.asarray(kind, jnp.int32), noise_key))
    figures = {
        name: evaluation.summarize(jax.tree.map(lambda rows, each=each: np.asarray(rows)[kind == each], found))
        for name, each in _KINDS.items()
    }
    whole_file.write(config.out / NAME, json.dumps(figures, indent=2) + "\n")


def read(folder: Path) -> References | None:
    """Return the figures in the run's `folder`; None if they were not measured yet, or cannot be read."""
    try:
        stored: Any = json.loads((folder / NAME).read_bytes())
        return {kind: {name: float(figure) for name, figure in stored[kind].items()} for kind in _KINDS}
    except (AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError):
        return None


def describe(metrics: Mapping[str, float], references: References | None) -> str:
    """Return one line that compares the policy with both; empty without figures to compare."""
    if references is None or "eval/touched" not in metrics:
        return ""
    columns = {"trained": metrics, "random actions": references["random_actions"]}
    columns["zero actions"] = references["zero_actions"]
    parts = [
        ", ".join(f"{name} {figures[metric]:.2f}" for name, figures in columns.items())
        for metric in ("eval/stay", "eval/touched")
    ]
    at_reset = metrics.get("eval/reached_at_reset", 0.0)
    started = f"; {at_reset:.0%} of the episodes began at their goal" if at_reset else ""
    return f"stay: {parts[0]}; touched: {parts[1]}{started}"
