"""probes.npz: inputs stored with a policy and the actions it must give for them, here and on every other machine."""

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from policy.acting import act
from policy.bundle.manifest import BundleError
from policy.networks import PolicyParams
from policy.spec import PolicySpec

PROBE_TOLERANCE = 1e-4  # actions lie in [-1, 1]; float32 rounding differs between machines by much less
_NAME = "probes.npz"


class Probes(NamedTuple):
    """Inputs stored with a policy and the actions it must give for them."""

    state: np.ndarray  # [rows, state_dim] float32
    goal: np.ndarray  # [rows, goal_dim] float32
    action: np.ndarray  # [rows, chunk_dim] float32


def compute(params: PolicyParams, spec: PolicySpec, *, state: np.ndarray, goal: np.ndarray) -> Probes:
    """Return the probes with the actions of `params` for `state: [rows, state_dim]` and `goal: [rows, goal_dim]`.

    Raises:
        ValueError: the shapes do not fit `spec`, or an action is NaN or infinity.
    """
    for name, array, width in (("probe_state", state, spec.state_dim), ("probe_goal", goal, spec.goal_dim)):
        if not len(state) or np.shape(array) != (len(state), width):
            raise ValueError(
                f"{name} must have shape [rows, {width}], with one row or more and as many rows as the other array, "
                f"got {list(np.shape(array))}"
            )
    try:
        return _compute(params, state, goal)
    except ValueError as error:
        raise ValueError(f"{error}, so it is not published; check the losses") from error


def save(folder: Path, probes: Probes) -> None:
    """Write the probes into `folder`."""
    np.savez(folder / _NAME, **probes._asdict())


def read(path: Path, spec: PolicySpec) -> Probes:
    """Read the probes of the bundle at `path`.

    Raises:
        BundleError: they cannot be read, or do not fit `spec`.
    """
    try:
        # Opened here, because numpy leaves a file open that turns out not to be an archive.
        with (path / _NAME).open("rb") as file, np.load(file, allow_pickle=False) as stored:
            probes = Probes(*(stored[name] for name in Probes._fields))
    except Exception as error:  # numpy raises zipfile, zlib, ValueError, KeyError ... for a damaged archive
        raise BundleError(path, "probes", f"{_NAME} cannot be read: {first_line(error)}") from error
    if any(array.dtype != np.float32 for array in probes):
        raise BundleError(path, "probes", f"types {[str(array.dtype) for array in probes]} are not all float32")
    sizes = (spec.state_dim, spec.goal_dim, spec.chunk_dim)
    rows = probes.state.shape[:1]
    if not rows or not rows[0] or any(array.shape != (*rows, size) for array, size in zip(probes, sizes, strict=True)):
        raise BundleError(path, "probes", f"shapes {[array.shape for array in probes]} do not fit sizes {sizes}")
    return probes


def verify(path: Path, params: PolicyParams, probes: Probes) -> None:
    """Compute the actions again and compare them with the published ones.

    Raises:
        BundleError: they differ by more than PROBE_TOLERANCE.
    """
    try:
        again = _compute(params, probes.state, probes.goal)
    except ValueError as error:
        raise BundleError(path, "probes", str(error)) from error
    worst = float(np.max(np.abs(again.action - probes.action)))
    if not worst <= PROBE_TOLERANCE:  # also refuses NaN
        detail = f"actions differ from the published ones by {worst:.2g}, more than {PROBE_TOLERANCE}"
        raise BundleError(path, "probes", detail)


def first_line(error: Exception) -> str:
    """Return the message of another library's error, short enough for a log."""
    return next(iter(str(error).splitlines()), repr(error))[:300]


def _compute(params: PolicyParams, state: np.ndarray, goal: np.ndarray) -> Probes:
    state, goal = np.asarray(state, np.float32), np.asarray(goal, np.float32)
    with jax.default_matmul_precision("highest"):
        action = np.asarray(jax.jit(act)(params, state, goal))
    if not np.isfinite(action).all():
        raise ValueError("the policy gives actions that are NaN or infinity for its probes")
    return Probes(state, goal, action)
