"""The formats of exported policies: how each is written, and how its own library checks what was written."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from policy.bundle import Bundle, probes
from policy.exchange import jax_artefact, safetensors_file

MODEL = "model.safetensors"
_ACTOR_ONNX, _CRITIC_ONNX = "actor.onnx", "critic.onnx"
_ACTOR_JAX, _CRITIC_JAX = "actor.jax", "critic.jax"
_ERRORS_ONLY = 3  # of onnxruntime's levels of severity
_Rows = dict[str, np.ndarray]


class ExportError(Exception):
    """A policy that cannot be exported as asked. The message is one line."""


class Format(NamedTuple):
    """How one format is written and checked.

    Args:
        modules: that it needs, of the extra `export`.
        write: writes the files into a folder; with the critic if the last argument is true. Raises ValueError if the
            format has no room or no operators for the policy.
        check: reads them back; raises ExportError if they do not give the results of the policy.
    """

    modules: tuple[str, ...]
    write: Callable[[Path, Bundle, bool], None]
    check: Callable[[Path, Bundle, bool], None]


def probe_rows(bundle: Bundle) -> _Rows:
    """Return the probes, with the noise [rows, chunk_dim] of the sampled actions."""
    return bundle.probes._asdict() | {"noise": np.asarray(probes.noise(*bundle.probes.action.shape))}


def require_equal(path: Path, expected: Mapping[str, np.ndarray]) -> None:
    """Refuse a safetensors file whose arrays are not `expected`, bit by bit.

    Raises:
        ExportError: naming the first difference.
        OSError: the file cannot be read.
    """
    try:
        found = safetensors_file.read(path)
    except ValueError as error:
        raise ExportError(str(error)) from error
    for name in sorted(found.keys() | expected.keys()):
        ours, theirs = expected.get(name), found.get(name)
        if ours is None or theirs is None or ours.dtype != theirs.dtype or ours.shape != theirs.shape:
            raise ExportError(f"{path.name} has another array {name} than the policy")
        if ours.tobytes() != theirs.tobytes():
            raise ExportError(f"{path.name} has other numbers in the array {name} than the policy")


def _write_safetensors(folder: Path, bundle: Bundle, critic: bool) -> None:
    safetensors_file.write(folder / MODEL, safetensors_file.named_arrays(bundle.params, critic=critic))


def _check_safetensors(folder: Path, bundle: Bundle, critic: bool) -> None:
    require_equal(folder / MODEL, safetensors_file.named_arrays(bundle.params, critic=critic))


def _write_onnx(folder: Path, bundle: Bundle, critic: bool) -> None:
    from policy.exchange import onnx_graph  # needs the package onnx

    onnx_graph.write_actor(folder / _ACTOR_ONNX, bundle.params, bundle.spec, version=bundle.version)
    if critic:
        onnx_graph.write_critic(folder / _CRITIC_ONNX, bundle.params, bundle.spec, version=bundle.version)


def _check_onnx(folder: Path, bundle: Bundle, critic: bool) -> None:
    import onnxruntime

    def run(name: str, output: str, rows: _Rows) -> np.ndarray:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        session = onnxruntime.InferenceSession(folder / name, options, providers=["CPUExecutionProvider"])
        return np.asarray(session.run([output], rows)[0])

    rows = probe_rows(bundle)
    given = {name: rows[name] for name in ("state", "goal")}
    results = _running(
        f"onnxruntime {onnxruntime.__version__}",
        lambda: (
            run(_ACTOR_ONNX, "action", given),
            run(_ACTOR_ONNX, "action", given | {"noise": rows["noise"]}),
            run(_CRITIC_ONNX, "energy", given | {"action": rows["action"]}) if critic else None,
        ),
    )
    _require_results("onnx", bundle, *results)


def _write_jax(folder: Path, bundle: Bundle, critic: bool) -> None:
    jax_artefact.write_actor(folder / _ACTOR_JAX, bundle.params, bundle.spec)
    if critic:
        jax_artefact.write_critic(folder / _CRITIC_JAX, bundle.params, bundle.spec)


def _check_jax(folder: Path, bundle: Bundle, critic: bool) -> None:
    def call(name: str) -> Callable[..., Any]:
        return jax.jit(jax.export.deserialize(bytearray((folder / name).read_bytes())).call)

    rows = probe_rows(bundle)
    state, action, goal, noise = (rows[name] for name in ("state", "action", "goal", "noise"))

    def results() -> tuple[Any, Any, Any]:
        with jax.default_device(jax.devices("cpu")[0]):
            act = call(_ACTOR_JAX)
            energy = call(_CRITIC_JAX)(state, action, goal) if critic else None
            return act(state, goal, np.zeros_like(noise)), act(state, goal, noise), energy

    _require_results("jax", bundle, *_running(f"jax {jax.__version__}", results))


def _running(library: str, compute: Callable[[], tuple[Any, Any, Any]]) -> tuple[Any, Any, Any]:
    """Return what `compute` returns.

    Raises:
        ExportError: the library cannot read or run what was written.
    """
    try:
        return compute()
    except Exception as error:  # libraries raise classes of their own
        raise ExportError(f"{library} cannot run the exported files: {probes.first_line(error)}") from error


def _require_results(name: str, bundle: Bundle, action: Any, sampled_action: Any, energy: Any) -> None:
    """Refuse results of the format `name` that are not those of the policy.

    Args:
        action, sampled_action: [rows, chunk_dim].
        energy: [rows]; None if the critic is not exported.

    Raises:
        ExportError: saying which results differ by how much.
    """
    stored = bundle.probes
    pairs = {"actions": (action, stored.action), "sampled actions": (sampled_action, stored.sampled_action)}
    if energy is not None:
        pairs["energies"] = (energy, stored.energy[:, 0])
    for kind, (given, expected) in pairs.items():
        if np.shape(given) != expected.shape:
            raise ExportError(f"the format {name} gives {kind} of shape {np.shape(given)} instead of {expected.shape}")
    energies = stored.energy if energy is None else np.asarray(energy)[:, None]
    if difference := stored.difference(np.asarray(action), np.asarray(sampled_action), energy=energies):
        raise ExportError(f"the format {name} does not give the results of the policy: its {difference}")


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "onnx": Format(("onnx", "onnxruntime"), _write_onnx, _check_onnx),
        "safetensors": Format((), _write_safetensors, _check_safetensors),
        "jax": Format((), _write_jax, _check_jax),
    }
)
"""How each format is written and checked, by its name."""
