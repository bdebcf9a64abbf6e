"""What diverges: worlds, whose restarts are counted, and losses and parameters. Too much of it ends a run.

The rollout restarts a world whose joints or state are NaN, infinite or beyond MuJoCo's own limit of 1e10. Its
counts are kept until the next evaluation.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from training.config import TrainConfig
from training.envs.core.goal_env import GoalEnv

NONE = -1


class DivergedError(Exception):
    """The physics of too many worlds diverged. The message names the environment and a joint."""


class Divergence(NamedTuple):
    """Restarts of diverged worlds since the last evaluation."""

    restarts: jax.Array  # [environments] int32
    part: jax.Array  # int32, what diverged first, as `GoalEnv.diverged_part` returns it; -1 if nothing has


def nothing(environments: int) -> Divergence:
    """Return the count before any world has diverged."""
    return Divergence(jnp.zeros(environments, jnp.int32), jnp.int32(NONE))


def add(before: Divergence, parts: jax.Array) -> Divergence:
    """Count the divergences of an unroll.

    Args:
        parts: [time, environments] int32, what diverged in each step, -1 where nothing did.
    """
    diverged = parts > NONE
    first = parts.reshape(-1)[jnp.argmax(diverged)]  # of a flat array; its first entry, -1, if nothing has
    return Divergence(
        restarts=before.restarts + jnp.sum(diverged, axis=0, dtype=jnp.int32),
        part=jnp.where(before.part > NONE, before.part, first),
    )


def count(divergence: Divergence) -> int:
    """Return the number of restarts."""
    return int(np.sum(divergence.restarts))


def describe(divergence: Divergence, env: GoalEnv) -> str:
    """Return one line about the restarts, or an empty string if there were none."""
    if not count(divergence):
        return ""
    restarts = np.asarray(divergence.restarts)
    return (
        f"the physics of {np.count_nonzero(restarts)} of {len(restarts)} environments diverged since the last "
        f"evaluation, first {env.part_name(int(divergence.part))}; they were restarted {restarts.sum()} times"
    )


def require_few(divergence: Divergence, env: GoalEnv, config: TrainConfig) -> None:
    """Raise an error if more than `config.max_diverged_share` of the worlds, and more than one, were restarted.

    Raises:
        DivergedError: the message says what to change.
    """
    restarts = np.asarray(divergence.restarts)
    worlds = np.count_nonzero(restarts)
    share = worlds / len(restarts)
    if worlds > 1 and share > config.max_diverged_share:  # of few worlds, a single one is already a large share
        raise DivergedError(
            f"{env.spec.name}: {describe(divergence, env)}. That is {share:.1%} of the environments, more than "
            f"max_diverged_share ({config.max_diverged_share:.1%}). Give the robot a shorter timestep, more solver "
            "iterations, more damping or armature, or weaker actuators; or raise --max-diverged-share"
        )


def require_finite(metrics: dict[str, np.ndarray], *, first: int, iteration: int, config: TrainConfig) -> None:
    """Check that every metric is finite.

    Args:
        metrics: one value per gradient step.
        first: number of the first of these steps within its round, from 0.
        iteration: of the round, from 1.
        config: the run's settings.

    Raises:
        FloatingPointError: a metric is not; the message names the first one.
    """
    worst = {name: int(np.argmin(np.isfinite(numbers))) for name, numbers in metrics.items()}
    broken = {name: step for name, step in worst.items() if not np.isfinite(metrics[name][step])}
    if broken:
        name = min(broken, key=lambda name: broken[name])
        raise FloatingPointError(
            f"{name} is NaN or infinity in gradient step {first + broken[name] + 1} of {config.updates_per_unroll} of "
            f"iteration {iteration}; the last snapshot is from before. Try a lower learning rate"
        )


def require_finite_parameters(params: Any, *, iteration: int) -> None:
    """Check that every array of `params`, any pytree, is finite. The losses of the last gradient step do not show it.

    Raises:
        FloatingPointError: a parameter is not; the message names it.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not np.isfinite(np.asarray(leaf)).all():
            raise FloatingPointError(
                f"{jax.tree_util.keystr(path, simple=True, separator='.')} is NaN or infinity after iteration "
                f"{iteration}; the last snapshot is from before. Try a lower learning rate"
            )
