"""Backend: what computes the actor and the critic of an exported policy, checked with the stored probes."""

from __future__ import annotations

from typing import Callable, NamedTuple, Optional

import numpy as np

from kilolayer._local import numpy_backend, onnx_backend
from kilolayer._local.export import MODEL, Export, Probes, read_arrays, read_probes
from kilolayer._local.manifest import invalid
from kilolayer._local.network import Floats
from kilolayer._local.noise import seeded_noise

Actor = Callable[[Floats, Floats, Optional[Floats]], Floats]  # state, goal, noise -> action [rows, chunk_dim]
Critic = Callable[[Floats, Floats, Floats], Floats]  # state, action, goal -> energy [rows]

BACKENDS = ("onnx", "numpy")
_PROBE_SEED = 0
_ACTION_TOLERANCE = 1e-4  # actions lie in [-1, 1]; float32 rounding differs between machines by much less
_SAMPLE_TOLERANCE = 1e-3  # sampled actions multiply the rounding by the noise and by a standard deviation of up to 7.4
_ENERGY_TOLERANCE = 1e-3  # relative to the largest energy of the probes, or to 1; energies have no bounds
_NOISE_TOLERANCE = 1e-4


class Backend(NamedTuple):
    """The functions of one policy. Any number of threads may call them."""

    name: str  # one of BACKENDS
    actor: Actor
    critic: Critic | None  # None: it was not exported, or there is none


def open_backend(export: Export, *, backend: str | None, threads: int | None) -> Backend:
    """Return the functions of `export`, after comparing what they give for the probes with the stored results.

    Args:
        export: the verified policy.
        backend: "onnx", "numpy", or None for "onnx" where it is available.
        threads: of ONNX Runtime; None means one.

    Raises:
        InvalidExport: a file is missing or does not fit, or the results differ from the stored ones.
        ImportError: a library of the extra `local` is not installed.
        ValueError: an argument is wrong.
    """
    if backend not in (None, *BACKENDS):
        raise ValueError(f"backend must be 'onnx' or 'numpy', got {backend!r:.80}")
    chosen = backend or ("onnx" if onnx_backend.is_preferred(export) else "numpy")
    opened = _onnx(export, threads) if chosen == "onnx" else _numpy(export, threads)
    problem = _difference(opened, read_probes(export))
    if problem:
        raise invalid(export.folder, f"computed by {chosen}, {problem}")
    return opened


def _onnx(export: Export, threads: int | None) -> Backend:
    number = 1 if threads is None else threads
    if type(number) is not int or number < 1:
        raise ValueError(f"threads must be a positive integer, got {threads!r:.80}; try 1")
    actor = onnx_backend.onnx_actor(export, threads=number)
    return Backend("onnx", actor, onnx_backend.onnx_critic(export, threads=number))


def _numpy(export: Export, threads: int | None) -> Backend:
    if threads is not None:
        raise ValueError(
            "threads is a setting of the backend onnx; the number of numpy's threads is that of its BLAS library, such"
            " as OPENBLAS_NUM_THREADS"
        )
    arrays = read_arrays(export, MODEL)
    actor = numpy_backend.numpy_actor(export, arrays)
    return Backend("numpy", actor, numpy_backend.numpy_critic(export, arrays))


def _difference(backend: Backend, probes: Probes) -> str:
    """Describe the first result for the probes that differs by more than its tolerance; empty if none does."""
    state, goal = probes.state, probes.goal
    noise = seeded_noise(_PROBE_SEED, rows=len(state), candidates=1, size=probes.noise.shape[1])
    sampled = backend.actor(state, goal, noise)
    results = [
        ("the noise of seed 0", noise, probes.noise, _NOISE_TOLERANCE),
        ("actions", backend.actor(state, goal, None), probes.action, _ACTION_TOLERANCE),
        ("sampled actions", sampled, probes.sampled_action, _SAMPLE_TOLERANCE),
    ]
    if backend.critic is not None and probes.energy.size:
        energy = backend.critic(state, probes.action, goal)[:, None]
        tolerance = _ENERGY_TOLERANCE * max(1.0, float(np.abs(probes.energy).max()))
        results.append(("energies", energy, probes.energy, tolerance))
    for name, computed, stored, tolerance in results:
        error = float(np.abs(computed - stored).max())
        if not error <= tolerance:  # also true for NaN
            return f"{name} differ from the exported ones by {error:.2g}, more than {tolerance:.2g}"
    return ""
