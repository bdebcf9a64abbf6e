"""An exported policy on disk, verified: its description, and its stored probes.

config.json          specification, version, hash of the published policy
probes.safetensors   inputs and noise, and the actions and energies that the policy must give for them
model.safetensors    parameters
actor.onnx           the actor as a graph; critic.onnx, the critic
manifest.json        size and SHA-256 of every other file
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kilolayer._local import manifest
from kilolayer._local.manifest import Entry, invalid
from kilolayer._responses import PolicyDescription
from kilolayer.errors import InvalidExport
from kilolayer.v1 import policy_pb2

CONFIG, PROBES, MODEL, ACTOR, CRITIC = (
    "config.json",
    "probes.safetensors",
    "model.safetensors",
    "actor.onnx",
    "critic.onnx",
)
_FORMAT, _FORMAT_VERSION = "kilolayer-export", 1
_MAX_ROWS = 4096  # of one call, as by default of a server
_SIZES = ("state_dim", "goal_dim", "action_dim")  # which follow from the names
_WITHOUT_CRITIC: dict[str, Any] = {"critic": "none", "critic_depth": 0, "critic_width": 0, "representation_dim": 0}


class Probes(NamedTuple):
    """Inputs stored with a policy, and what it must give for them."""

    state: NDArray[np.float32]  # [rows, state_dim]
    goal: NDArray[np.float32]  # [rows, goal_dim]
    noise: NDArray[np.float32]  # [rows, chunk_dim], of the seed 0
    action: NDArray[np.float32]  # [rows, chunk_dim], deterministic
    sampled_action: NDArray[np.float32]  # [rows, chunk_dim], with `noise`
    energy: NDArray[np.float32]  # [rows, 1], of `action`; [rows, 0] without a critic


@dataclasses.dataclass(frozen=True)
class Export:
    """An exported policy whose files are as they were written.

    Attributes:
        folder: where it is.
        files: its files, by their names.
        spec: the specification, as config.json has it: in full precision.
        description: as a server would give it.
        has_critic: whether the policy itself has a critic, exported or not.
    """

    folder: Path
    files: dict[str, Entry]
    spec: dict[str, Any]
    description: PolicyDescription
    has_critic: bool

    @property
    def chunk_dim(self) -> int:
        """Values in one chunk of actions."""
        return self.description.action_chunk * self.description.action_dim


def read(folder: Path) -> Export:
    """Verify the files in `folder` and return what config.json says of them.

    Raises:
        InvalidExport: a file is missing or has changed, or config.json has another format.
    """
    files = manifest.verify(folder)
    if CONFIG not in files:
        raise invalid(folder, f"{CONFIG} is missing, so this is no exported policy")
    try:
        config = json.loads(manifest.content(folder, CONFIG, files[CONFIG]))
        found = config["format"], config["format_version"]
        if found != (_FORMAT, _FORMAT_VERSION):
            raise invalid(
                folder, f"{CONFIG} has format {found[0]!r:.80} {found[1]!r:.80}, not {_FORMAT} {_FORMAT_VERSION}"
            )
        spec: dict[str, Any] = config["spec"]
        reply = policy_pb2.DescribeResponse(
            spec=_spec_message(folder, spec),
            version=str(config["version"]),
            manifest_sha256=config["manifest_sha256"],
            max_rows=_MAX_ROWS,
        )
        has_critic = spec["critic"] != "none"
        is_exported = bool(config["has_critic_exported"])
        description = PolicyDescription.from_proto(reply)
    except InvalidExport:
        raise
    # protobuf raises ValueError for numbers out of range and for text without an encoding
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise invalid(folder, f"{CONFIG} cannot be read: {error!a:.200}") from error
    if not is_exported:
        description = dataclasses.replace(description, **_WITHOUT_CRITIC)
    return Export(folder, files, spec, description, has_critic)


def read_probes(export: Export) -> Probes:
    """Return the probes.

    Raises:
        InvalidExport: they cannot be read, or do not fit the specification.
    """
    arrays = read_arrays(export, PROBES)
    sizes = export.description
    dims = (sizes.state_dim, sizes.goal_dim, export.chunk_dim, export.chunk_dim, export.chunk_dim)
    rows = len(arrays.get("state", ()))
    expected = dict(zip(Probes._fields, ((rows, dim) for dim in (*dims, int(export.has_critic)))))
    found = {name: arrays[name].shape for name in Probes._fields if name in arrays}
    if not rows or found != expected:
        raise invalid(export.folder, f"{PROBES} has the shapes {found} where the specification has {expected}")
    return Probes(*(arrays[name] for name in Probes._fields))


def read_arrays(export: Export, name: str) -> dict[str, NDArray[np.float32]]:
    """Return the float32 arrays of the safetensors file `name`.

    Raises:
        InvalidExport: the file is missing, cannot be read, or has other types.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if name not in export.files:
        raise invalid(export.folder, f"{name} is missing")
    try:
        arrays = load(manifest.content(export.folder, name, export.files[name]))
    except (SafetensorError, KeyError) as error:  # KeyError: another type than numpy has
        raise invalid(export.folder, f"{name} cannot be read: {error!s:.200}") from error
    if other := sorted(key for key, array in arrays.items() if array.dtype != np.float32):
        raise invalid(export.folder, f"the array {other[0]} of {name} is not float32")
    return arrays


def require_extra() -> None:
    """Raise ImportError if safetensors, which every export needs, is not installed."""
    try:
        importlib.import_module("safetensors")
    except ImportError as error:
        raise missing_extra("safetensors", error) from error


def missing_extra(module: str, error: ImportError) -> ImportError:
    """Return the exception for a library of the extra `local` that cannot be imported."""
    return ImportError(
        f"LocalPolicy needs {module}, which cannot be imported ({error}); install the extra local:"
        " pip install 'kilolayer[local]', or clients/python[local] from a checkout",
        name=module,
    )


def _spec_message(folder: Path, spec: dict[str, Any]) -> policy_pb2.PolicySpec:
    known = {field.name for field in policy_pb2.PolicySpec.DESCRIPTOR.fields} - {*_SIZES}
    if difference := sorted(known ^ spec.keys()):
        problem = "lacks" if difference[0] in known else "has the unknown field"
        raise invalid(folder, f"the specification in {CONFIG} {problem} {difference[0]!a:.80}")
    sizes = {f"{kind}_dim": len(spec[f"{kind}_names"]) for kind in ("state", "goal", "action")}
    return policy_pb2.PolicySpec(**sizes, **spec)
