"""A published policy in one's own process, without a server: `policy.load(folder).act(state, goal)`.

The actions are those that a server gives, up to the rounding of float32: both compute them with `policy.acting` in full
precision, and a seed gives the same noise.
"""

import operator
from pathlib import Path
from typing import SupportsIndex

import jax
import numpy as np
from numpy.typing import ArrayLike

from policy import acting, bundle, published
from policy.bits import in_32_bits
from policy.bundle import Bundle
from policy.networks import PolicyParams
from policy.real_numbers import as_float32
from policy.spec import PolicySpec

_MAX_SEED = 2**64 - 1


class LoadedPolicy:
    """A published policy, verified and ready to act. Several threads may use it.

    Calls are padded to the next power of two of rows, so that few programs are compiled. The first deterministic and
    the first sampled call of each such size compile, which takes a second or more.

    Args:
        verified: the policy, as `policy.bundle.read` returns it.
    """

    def __init__(self, verified: Bundle) -> None:
        self.bundle = verified
        """Everything that the folder holds: parameters, probes and provenance."""
        actor_only = verified.params._replace(state_action_encoder=None, goal_encoder=None)
        self._params: PolicyParams = jax.device_put(actor_only)

    @property
    def spec(self) -> PolicySpec:
        """The sizes, names, units and limits."""
        return self.bundle.spec

    @property
    def version(self) -> int:
        """The training step at which the policy was published."""
        return self.bundle.version

    @in_32_bits
    def act(
        self, state: ArrayLike, goal: ArrayLike, *, noise: ArrayLike | None = None, seed: SupportsIndex | None = None
    ) -> np.ndarray:
        """Return the action in `state` towards `goal`: the deterministic one, unless there is `noise` or a `seed`.

        Args:
            state: [state_dim], or [rows, state_dim].
            goal: [goal_dim] for every row, or [rows, goal_dim].
            noise: [chunk_dim] for every row, or [rows, chunk_dim], standard normal: sample the action with it.
            seed: sample with the noise that a server uses for this seed, 0 to 2**64 - 1.

        Returns:
            [chunk_dim] for one state, else [rows, chunk_dim], float32 in [-1, 1]. chunk_dim is `spec.action_dim`, or
            `spec.action_chunk` times that: the first action comes first.

        Raises:
            ValueError: a size does not fit the policy, a value is NaN, infinite or not a real number, the seed is out
                of range, or there are both noise and a seed. The message is one line.
        """
        spec = self.spec
        states = _rows("state", state, spec.state_dim)
        rows = len(states)
        goals = _repeated("goal", _rows("goal", goal, spec.goal_dim), rows)
        if noise is not None and seed is not None:
            raise ValueError("noise and seed cannot be combined: the seed stands for noise; leave out one of them")
        with jax.default_matmul_precision("highest"):
            if seed is not None:
                drawn = _noise(_checked_seed(seed), rows=rows, size=spec.chunk_dim)
                action = _sampled(self._params, states, goals, noise=drawn)
            elif noise is not None:
                drawn = _repeated("noise", _rows("noise", noise, spec.chunk_dim), rows)
                action = _sampled(self._params, states, goals, noise=drawn)
            else:
                action = acting.act(self._params, _padded(states), _padded(goals))
        results = np.array(action)[:rows]
        return results[0] if np.ndim(state) == 1 else results


def load(folder: Path | str, version: int | None = None) -> LoadedPolicy:
    """Verify and load a published policy.

    Args:
        folder: a published version such as runs/first/policies/2000, or the folder of all versions.
        version: which one of a folder of versions; None: the newest.

    Raises:
        policy.published.MissingVersionError: there is no such version.
        policy.bundle.BundleError: it is damaged.
        OSError: a file cannot be read.
    """
    return LoadedPolicy(bundle.read(published.find(Path(folder), version)))


def _rows(name: str, values: ArrayLike, size: int) -> np.ndarray:
    """Return `values` as [rows, size] float32.

    Raises:
        ValueError: they have another size, no row, or NaN or infinity.
    """
    try:
        given = as_float32(values)
    except ValueError as error:
        raise ValueError(f"{name} must be an array of numbers: {error}") from error
    if given.shape != (size,) and not (given.ndim == 2 and given.shape[1] == size and len(given)):
        raise ValueError(f"{name} must have shape [{size}] or [rows, {size}], got {list(given.shape)}")
    rows = given.reshape(-1, size)
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise ValueError(f"{name} of row {int(np.argmin(finite))} (the first is 0) has NaN or infinity")
    return rows


def _repeated(name: str, values: np.ndarray, rows: int) -> np.ndarray:
    """Return `values: [1 or rows, size]` as [rows, size].

    Raises:
        ValueError: they have another number of rows.
    """
    if len(values) not in {1, rows}:
        raise ValueError(f"{name} must have one row, or {rows} as state has, got {len(values)}")
    return np.broadcast_to(values, (rows, values.shape[1]))


def _checked_seed(seed: SupportsIndex) -> int:
    try:
        number = None if isinstance(seed, bool | np.bool_) else operator.index(seed)  # also numpy's integers
    except TypeError:
        number = None
    if number is None or not 0 <= number <= _MAX_SEED:
        raise ValueError(f"seed must be an integer from 0 to {_MAX_SEED}, got {seed!r:.80}")
    return number


def _padded(rows: np.ndarray) -> np.ndarray:
    """Return `rows` with zeros after them, up to a power of two of rows."""
    missing = (1 << (len(rows) - 1).bit_length()) - len(rows)
    return np.pad(rows, ((0, missing), (0, 0))) if missing else rows


def _noise(seed: int, *, rows: int, size: int) -> np.ndarray:
    """Return the noise [rows, size] that a server uses for `seed` in a call with this number of rows."""
    integers = np.zeros((rows, 4), np.uint32)
    integers[:, 0], integers[:, 1] = seed & 0xFFFFFFFF, seed >> 32
    integers[:, 2] = np.arange(rows)
    return np.asarray(jax.vmap(lambda row: acting.seeded_noise(row, size))(_padded(integers)))[:rows]


def _sampled(params: PolicyParams, states: np.ndarray, goals: np.ndarray, *, noise: np.ndarray) -> jax.Array:
    return _sample(params, _padded(states), _padded(goals), noise=_padded(noise))


@jax.jit
def _sample(params: PolicyParams, state: jax.Array, goal: jax.Array, *, noise: jax.Array) -> jax.Array:
    return acting.sample_action(acting.action_distribution(params, state, goal), noise)[0]
