"""probes.npz: inputs stored with a policy, and what it must give for them, here and on every other machine.

They cover everything that a server computes: deterministic actions, sampled actions, and energies. The sampled actions
have the noise that a server takes for the seed 0 (see `policy.acting.seeded_noise`). The energies are those of the
deterministic actions.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from policy import acting
from policy.bundle.manifest import BundleError
from policy.networks import PolicyParams
from policy.spec import PolicySpec

PROBE_TOLERANCE = 1e-4  # actions lie in [-1, 1]; float32 rounding differs between machines by much less
SAMPLE_TOLERANCE = 1e-3  # sampled actions multiply the rounding by the noise and by a standard deviation of up to 7.4
ENERGY_TOLERANCE = 1e-3  # relative to the largest energy of the probes, or to 1; energies have no bounds
PROBE_SEED = 0
_NAME = "probes.npz"


class Probes(NamedTuple):
    """Inputs stored with a policy, and what it must give for them."""

    state: np.ndarray  # [rows, state_dim] float32
    goal: np.ndarray  # [rows, goal_dim] float32
    action: np.ndarray  # [rows, chunk_dim] float32, deterministic
    sampled_action: np.ndarray  # [rows, chunk_dim] float32, with the noise of PROBE_SEED
    energy: np.ndarray  # [rows, 1] float32, of `action`; [rows, 0] without a critic

    def difference(self, action: np.ndarray, sampled_action: np.ndarray, *, energy: np.ndarray) -> str:
        """Describe the first result that differs from the stored one by more than its tolerance; empty if none does."""
        largest = float(np.max(np.abs(self.energy), initial=1.0))
        for name, given, stored, tolerance in (
            ("actions", action, self.action, PROBE_TOLERANCE),
            ("sampled actions", sampled_action, self.sampled_action, SAMPLE_TOLERANCE),
            ("energies", energy, self.energy, ENERGY_TOLERANCE * largest),
        ):
            error = float(np.max(np.abs(given - stored), initial=0.0))
            if not error <= tolerance:  # also true for NaN
                return f"{name} differ from the published ones by {error:.2g}, more than {tolerance:.2g}"
        return ""


def compute(params: PolicyParams, spec: PolicySpec, *, state: np.ndarray, goal: np.ndarray) -> Probes:
    """Return the probes of `params` for `state: [rows, state_dim]` and `goal: [rows, goal_dim]`.

    Raises:
        ValueError: the shapes do not fit `spec`.
        FloatingPointError: an action or an energy is NaN or infinity.
    """
    for name, array, width in (("probe_state", state, spec.state_dim), ("probe_goal", goal, spec.goal_dim)):
        if not len(state) or np.shape(array) != (len(state), width):
            raise ValueError(
                f"{name} must have shape [rows, {width}], with one row or more and as many rows as the other array, "
                f"got {list(np.shape(array))}"
            )
    probes = _compute(params, spec, np.asarray(state, np.float32), goal=np.asarray(goal, np.float32))
    if not all(np.isfinite(array).all() for array in probes):
        raise FloatingPointError(
            "the policy gives actions or energies that are NaN or infinity, so it is not published; check the losses"
        )
    return probes


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
    except FileNotFoundError as error:
        raise BundleError(path, "probes", f"{_NAME} is missing") from error
    except Exception as error:  # numpy raises zipfile, zlib, ValueError, KeyError ... for a damaged archive
        raise BundleError(path, "probes", f"{_NAME} cannot be read: {first_line(error)}") from error
    if any(array.dtype != np.float32 for array in probes):
        raise BundleError(path, "probes", f"types {[str(array.dtype) for array in probes]} are not all float32")
    sizes = (spec.state_dim, spec.goal_dim, spec.chunk_dim, spec.chunk_dim, int(spec.has_critic))
    rows = probes.state.shape[:1]
    if not rows or not rows[0] or any(array.shape != (*rows, size) for array, size in zip(probes, sizes, strict=True)):
        raise BundleError(path, "probes", f"shapes {[array.shape for array in probes]} do not fit sizes {sizes}")
    if bad := [name for name, array in probes._asdict().items() if not np.isfinite(array).all()]:
        raise BundleError(path, "probes", f"{bad[0]} contains NaN or infinity")
    return probes


def verify(path: Path, params: PolicyParams, probes: Probes, *, spec: PolicySpec) -> None:
    """Compute the actions and energies again and compare them with the published ones.

    Raises:
        BundleError: they differ by more than their tolerances.
    """
    with jax.default_matmul_precision("highest"):
        action, sampled_action = map(np.asarray, _actions(params, probes.state, probes.goal))
    energy = _energies(params, spec, probes.state, action=probes.action, goal=probes.goal)
    if difference := probes.difference(action, sampled_action, energy=energy):
        raise BundleError(path, "probes", difference)


@functools.partial(jax.jit, static_argnums=(0, 1))
def noise(rows: int, size: int) -> jax.Array:
    """Return the noise [rows, size] that gives the sampled actions."""
    low, high = PROBE_SEED & 0xFFFFFFFF, PROBE_SEED >> 32
    integers = jnp.array([[low, high, row, 0] for row in range(rows)], jnp.uint32)
    return jax.vmap(lambda row: acting.seeded_noise(row, size))(integers)


def first_line(error: Exception) -> str:
    """Return the message of another library's error, short enough for a log."""
    return next(iter(str(error).splitlines()), repr(error))[:300]


def _compute(params: PolicyParams, spec: PolicySpec, state: np.ndarray, *, goal: np.ndarray) -> Probes:
    """Return the probes for `state` and `goal`."""
    with jax.default_matmul_precision("highest"):
        action, sampled_action = map(np.asarray, _actions(params, state, goal))
    energy = _energies(params, spec, state, action=action, goal=goal)
    return Probes(state, goal, action, sampled_action, energy)


@jax.jit  # compiled once for all versions of a policy, and so is `_score`
def _actions(params: PolicyParams, state: jax.Array, goal: jax.Array) -> tuple[jax.Array, jax.Array]:
    distribution = acting.action_distribution(params, state, goal)
    return acting.act(params, state, goal), acting.sample_action(distribution, noise(*distribution.mean.shape))[0]


def _energies(
    params: PolicyParams, spec: PolicySpec, state: np.ndarray, *, action: np.ndarray, goal: np.ndarray
) -> np.ndarray:
    """Return the energies [rows, 1] of `action`, or [rows, 0] without a critic."""
    if not spec.has_critic:
        return np.zeros((len(state), 0), np.float32)
    with jax.default_matmul_precision("highest"):
        return np.asarray(_score(params, state, action, goal=goal, energy=spec.energy))[:, None]


_score = jax.jit(acting.score, static_argnames="energy")
