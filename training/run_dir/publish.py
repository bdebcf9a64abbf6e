"""Publish a run's policy: compute its probes, hand it to `policy.bundle.write`, and delete policies not to be kept.

The order in which a policy's files reach the disk is in `policy/bundle/writer.py`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from policy import bundle
from policy.networks import PolicyParams
from training.config import TrainConfig
from training.envs.core.goal_env import GoalEnv, State
from training.run_dir import best, provenance
from training.state_statistics import Statistics, spec_fields

_PROBES = 32


def publish(
    config: TrainConfig,
    env: GoalEnv,
    params: PolicyParams,
    *,
    statistics: Statistics,
    env_steps: int,
    metrics: dict[str, Any],
    origin: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    """Publish the policy as version `env_steps`, unless it is there already, and return its folder.

    Then delete older versions: `config.keep_policies` and the best one stay.

    Args:
        statistics: of the states seen so far, for the specification.
        metrics: of its evaluation, for the policy's provenance.
        origin: of the process that trains it, for its provenance, see `provenance.Origin.facts`.

    Raises:
        OSError: the folder cannot be written; policies published earlier are intact.
    """
    root = config.out / "policies"
    if env_steps not in bundle.versions(root):
        probe_key = jax.random.fold_in(jax.random.key(config.seed), env_steps % 2**32)
        probes = _reset_all(env)(jax.random.split(probe_key, _PROBES))
        bundle.write(
            root,
            env_steps,
            spec=dataclasses.replace(config.policy_spec(env), **spec_fields(statistics, params.normalization)),
            params=jax.tree.map(np.asarray, params),
            probe_state=np.asarray(probes.info["state"]),
            probe_goal=np.asarray(probes.info["goal"]),
            provenance={"config": config.to_json(), "metrics": metrics, **origin, "date": provenance.date()},
        )
    _delete_old(root, keep=config.keep_policies)
    return root / str(env_steps)


def sweep(config: TrainConfig) -> None:
    """Remove the unfinished folders that killed processes left among the run's policies."""
    bundle.sweep(config.out / "policies")


def _delete_old(root: Path, *, keep: int) -> None:
    """Delete all versions but the `keep` newest ones, 0 for all, and the best one."""
    stay = {*bundle.versions(root)[-keep:], best.best_version(root)}
    for version in bundle.versions(root):
        if version not in stay:
            bundle.remove(root, version)


@functools.lru_cache(maxsize=1)
def _reset_all(env: GoalEnv) -> Callable[[jax.Array], State]:
    """Return the compiled reset of many environments, compiled once for all publications of a run."""
    return jax.jit(jax.vmap(env.reset))


def last_policy(config: TrainConfig) -> Path | None:
    """Return the folder of the run's newest published policy, or None if there is none."""
    root = config.out / "policies"
    versions = bundle.versions(root)
    return root / str(versions[-1]) if versions else None


def describe_later(config: TrainConfig, env_steps: int) -> str:
    """Return a line about the policies that are newer than a snapshot of `env_steps`; empty if there are none."""
    root = config.out / "policies"
    later = [version for version in bundle.versions(root) if version > env_steps]
    if not later:
        return ""
    return (
        f"{root} has versions that are newer than the snapshot of step {env_steps}: {', '.join(map(str, later))}. They "
        "stay, and the run does not publish these versions again. Under other learning rates, from other code or on "
        "another device it learns other policies: to publish those, stop it, move the newer versions away and resume"
    )


def describe_policies(config: TrainConfig) -> str:
    """Return a line that names the run's newest policy and its best one."""
    root = config.out / "policies"
    best_version, newest = best.best_version(root), last_policy(config)
    if best_version is None or newest is None:
        return f"no policy in {root}"
    if root / str(best_version) == newest:
        (stay,) = best.stays_in_words(root, best_version)
        return f"policy in {newest}: the newest, and the best ({stay})"
    stay, best_stay = best.stays_in_words(root, int(newest.name), best_version)
    return f"policy in {newest}: the newest ({stay}); the best is {root / str(best_version)} ({best_stay})"
