"""Publish a version of a policy: write it next to its final place, then rename it, so that readers see all or nothing.

The order, in `write`: check the parameters and compute the probes; write policy.json, probes.npz and params/ into a
scratch folder; write manifest.json, which has the hashes of these files; fsync every file and folder; rename the
scratch folder to its version; fsync the parent folder.
"""

import dataclasses
import json
import os
import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from policy.bits import in_32_bits
from policy.bundle import arrays, manifest, probes
from policy.networks import PolicyParams
from policy.spec import PolicySpec

_SCRATCH = ".publishing-"
_REMOVALS, _REMOVAL_PAUSE_S = 20, 0.1


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
) -> Path:
    """Publish version `version` of a policy in `root` and return its folder. Existing versions are not changed.

    Only one process may publish in a root at a time. Unfinished folders of killed processes are removed first.

    Args:
        version: the training step, 0 or more; it names the folder.
        probe_state: [rows, state_dim], inputs whose actions and energies are stored for verification.
        probe_goal: [rows, goal_dim].
        provenance: JSON-compatible facts about the origin of the policy.

    Raises:
        FileExistsError: the version is already published.
        ValueError: the version is negative, the parameters or probes do not fit `spec`, or a parameter, action or
            energy is NaN or infinity; such a policy could not be read, or not be used.
        OSError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    if version < 0:
        raise ValueError(f"version must be a training step, 0 or more, got {version}")
    target = root / str(version)
    if target.exists():
        raise FileExistsError(f"{target} is already published; a published policy never changes")
    arrays.require_fit(params, spec)
    computed = probes.compute(params, spec, state=probe_state, goal=probe_goal)
    root.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(root)
    scratch = root / f"{_SCRATCH}{version}-{uuid.uuid4().hex[:8]}"
    try:
        scratch.mkdir()
        _write_description(scratch, spec, provenance)
        probes.save(scratch, computed)
        arrays.save(scratch, params)
        manifest.write(scratch)
        _fsync_tree(scratch)
        scratch.rename(target)
    except BaseException:
        _remove(scratch)
        raise
    _fsync(root)
    return target


def _write_description(folder: Path, spec: PolicySpec, provenance: Mapping[str, Any]) -> None:
    description = {"format": manifest.FORMAT_VERSION, "spec": dataclasses.asdict(spec), "provenance": dict(provenance)}
    (folder / "policy.json").write_text(json.dumps(description, indent=2) + "\n")


def _remove_leftovers(root: Path) -> None:
    """Remove the scratch folders of processes that were killed."""
    for leftover in root.glob(f"{_SCRATCH}*"):
        shutil.rmtree(leftover)


def _remove(scratch: Path) -> None:
    """Remove the scratch folder of a failed publication. Repeat until it is gone: Orbax may still be writing to it."""
    for _ in range(_REMOVALS):
        shutil.rmtree(scratch, ignore_errors=True)
        time.sleep(_REMOVAL_PAUSE_S)
        if not scratch.exists():
            return


def _fsync_tree(root: Path) -> None:
    """Force every file and folder below `root`, and `root` itself, to disk."""
    for folder, _, names in os.walk(root):
        for name in (*names, "."):
            _fsync(Path(folder) / name)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
