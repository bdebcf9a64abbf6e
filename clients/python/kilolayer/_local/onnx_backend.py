"""The actor and the critic as ONNX graphs, computed by ONNX Runtime on the CPU.

The graphs contain the signs of quaternions, the normalization and the squashing. The actor's input `noise` may be left
out; the action is then the deterministic one.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from kilolayer._local.export import ACTOR, CRITIC, MODEL, Export, missing_extra
from kilolayer._local.manifest import invalid
from kilolayer._local.network import Floats

_ERRORS_ONLY = 3  # ONNX Runtime's severity: it warns of inputs with a default, such as the noise
_PROVIDERS = ["CPUExecutionProvider"]


class OnnxActor:
    """(state, goal) -> the actions. Threads may share it."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def __call__(self, state: Floats, goal: Floats, noise: Floats | None) -> Floats:
        """Return actions [rows, chunk_dim] in [-1, 1], sampled with `noise: [rows, chunk_dim]` if there is any."""
        inputs = {"state": state, "goal": goal}
        if noise is not None:
            inputs["noise"] = noise
        return self._session.run(["action"], inputs)[0]


class OnnxCritic:
    """(state, action, goal) -> the energies. Threads may share it."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def __call__(self, state: Floats, action: Floats, goal: Floats) -> Floats:
        """Return the energies [rows] of `action: [rows, chunk_dim]`."""
        return self._session.run(["energy"], {"state": state, "action": action, "goal": goal})[0]


def is_preferred(export: Export) -> bool:
    """Return whether the export has a graph of the actor, and ONNX Runtime is installed or numpy has no parameters."""
    is_installed = importlib.util.find_spec("onnxruntime") is not None
    return ACTOR in export.files and (is_installed or MODEL not in export.files)


def onnx_actor(export: Export, *, threads: int) -> OnnxActor:
    """Return the actor, computed by `threads` threads.

    Raises:
        InvalidExport: there is no graph of it, or ONNX Runtime cannot load it.
        ImportError: ONNX Runtime is not installed.
    """
    return OnnxActor(_session(export, ACTOR, threads=threads))


def onnx_critic(export: Export, *, threads: int) -> OnnxCritic | None:
    """Return the critic, None if the export has no graph of it. Raises as `onnx_actor`."""
    return OnnxCritic(_session(export, CRITIC, threads=threads)) if CRITIC in export.files else None


def _session(export: Export, name: str, *, threads: int) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_extra("onnxruntime", error) from error
    if name not in export.files:
        raise invalid(export.folder, f"{name} is missing, so ONNX Runtime cannot compute it (backend='numpy' may)")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    try:
        return onnxruntime.InferenceSession(str(export.folder / name), options, providers=_PROVIDERS)
    except Exception as error:  # ONNX Runtime has a class for each status, without a common base
        version = onnxruntime.__version__
        raise invalid(export.folder, f"ONNX Runtime {version} cannot load {name}: {error!s:.200}") from error
