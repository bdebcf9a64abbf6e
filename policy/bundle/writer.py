"""Publish a version of a policy, or remove one, so that readers see all of it or nothing.

The order, in `write`: check the parameters and compute the probes; write policy.json, probes.npz and params/ into a
scratch folder, and their hashes into manifest.json; read the policy back as a server will; rename the scratch folder to
its version. `policy/verified_folder.py` has the steps between.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from policy import verified_folder
from policy.bits import in_32_bits
from policy.bundle import arrays, manifest, probes, reader
from policy.bundle.manifest import BundleError
from policy.networks import PolicyParams
from policy.published import is_version
from policy.spec import PolicySpec


@in_32_bits
def write(
    root: Path,
    version: int,
    *,
    spec: PolicySpec,
    params: PolicyParams,
    probe_state: np.ndarray,
    probe_goal: np.ndarray,
    provenance: Mapping[str, Any],
    sweeps: bool = True,
) -> Path:
    """Publish version `version` of a policy in `root` and return its folder. Existing versions are not changed.

    Unfinished folders of killed processes are removed first (a sweep). This would also remove the unfinished folder of
    another process, so a process that sweeps must be the only one that publishes in a root.

    Args:
        version: the training step, 0 or more, of at most 18 digits; it names the folder.
        probe_state: [rows, state_dim], inputs whose actions and energies are stored for verification.
        probe_goal: [rows, goal_dim].
        provenance: JSON-compatible facts about the origin of the policy.
        sweeps: whether to remove unfinished folders, which may belong to another process.

    Raises:
        FileExistsError: the version is already published.
        ValueError: the version is not allowed, or the parameters or probes do not fit `spec`.
        FloatingPointError: a parameter, action or energy is NaN or infinity; such a policy could not be read, or not be
            used.
        OSError: the disk is full, or the folder cannot be written or read back; nothing is left behind.
    """
    if not is_version(str(version)):  # could not be read
        raise ValueError(f"version must be a training step, 0 or more, got {version}; it has at most 18 digits")
    target = root / str(version)
    if target.exists():
        raise FileExistsError(f"{target} is already published; a published policy never changes")
    arrays.require_fit(params, spec)
    computed = probes.compute(params, spec, state=probe_state, goal=probe_goal)
    if sweeps:
        verified_folder.sweep(root)

    def fill(scratch: Path) -> None:
        _write_description(scratch, spec, provenance)
        probes.save(scratch, computed)
        arrays.save(scratch, params)

    def check(scratch: Path) -> None:
        try:
            reader.load(scratch, version)
        except BundleError as error:
            raise verified_folder.unreadable(error.problem) from error

    verified_folder.create(
        target,
        fill=fill,
        check=check,
        format_version=manifest.FORMAT_VERSION,
        what="the policy",
        replace=False,
    )
    return target


def remove(root: Path, version: int) -> None:
    """Remove a published version. Readers see all of it or nothing; one that is just reading it gets an error.

    Raises:
        OSError: it does not exist, or `root` cannot be written.
    """
    verified_folder.remove(root / str(version))


def sweep(root: Path) -> None:
    """Remove the unfinished folders that killed processes left in `root`."""
    verified_folder.sweep(root)


def _write_description(folder: Path, spec: PolicySpec, provenance: Mapping[str, Any]) -> None:
    description = {"format": manifest.FORMAT_VERSION, "spec": dataclasses.asdict(spec), "provenance": dict(provenance)}
    (folder / "policy.json").write_text(json.dumps(description, indent=2) + "\n")
