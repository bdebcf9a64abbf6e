"""Publishing a run's policy: the bundle on disk that serving reads, with where it comes from."""

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from policy import bundle
from policy.networks import PolicyParams
from training.config import TrainConfig
from training.envs.base import GoalEnv

_PROBES = 32


def publish_once(
    config: TrainConfig, env: GoalEnv, params: PolicyParams, *, iteration: int, metrics: dict[str, Any]
) -> Path:
    """Publish the policy as it is after `iteration`, unless the very same step was published before an interruption.

    Raises:
        OSError: the folder cannot be written; what was published before is intact.
    """
    version = iteration * config.steps_per_iteration
    root = config.out / "policies"
    if version in bundle.versions(root):
        return root / str(version)
    probe_key = jax.random.fold_in(jax.random.key(config.seed), version % 2**32)
    probes = jax.jit(jax.vmap(env.reset))(jax.random.split(probe_key, _PROBES))
    return bundle.publish(
        root,
        version,
        spec=config.spec(env),
        params=jax.tree.map(np.asarray, params),
        probe_state=np.asarray(probes.info["state"]),
        probe_goal=np.asarray(probes.info["goal"]),
        provenance={"config": config.to_json(), "metrics": metrics, "versions": library_versions()},
    )


def library_versions() -> dict[str, str]:
    """The versions that a result depends on."""
    libraries = ("jax", "jaxlib", "mujoco", "mujoco-mjx", "optax", "kilolayer-stack")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in libraries}


def last_policy(config: TrainConfig) -> Path | None:
    """The newest published policy of the run; None if there is none yet."""
    root = config.out / "policies"
    versions = bundle.versions(root)
    return root / str(versions[-1]) if versions else None
