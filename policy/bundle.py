"""A policy on disk: one folder per published version, written all or nothing, and verified on reading.

    <root>/<version>/policy.json     specification, format version, provenance
                     params/         Orbax arrays: the actor and the critic's encoders
                     probes.npz      (state, goal) rows and the actions they must give
                     manifest.json   size and SHA-256 of every file above

`publish` writes beside the target, hashes, fsyncs, renames, and fsyncs the parent: a reader sees the whole folder or
none. `read` trusts nothing: it checks the manifest, the hashes, the specification and the shapes before it loads an
array, and offers the policy only when it gives the probes' actions again.
"""

import dataclasses
import functools
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from policy.acting import act
from policy.networks import PolicyParams, init_policy
from policy.spec import PolicySpec, SpecError

FORMAT_VERSION = 1
PROBE_TOLERANCE = 1e-4  # actions lie in [-1, 1]; float32 on another machine stays well within
_SCRATCH = ".publishing-"
_REMOVALS, _REMOVAL_PAUSE_S = 20, 0.1

_MALFORMED = (ValueError, TypeError, KeyError, AttributeError, RecursionError)  # what JSON of another shape raises

Reason = Literal["missing", "manifest", "files", "hash", "spec", "arrays", "probes"]


class BundleError(Exception):
    """A bundle that must not be used. `reason` is one word for metrics; the message says what to do."""

    def __init__(self, path: Path, reason: Reason, detail: str) -> None:
        super().__init__(f"{path} is not a usable policy ({reason}): {detail}. Publish it again, or remove the folder.")
        self.path = path
        self.reason: Reason = reason


class Probes(NamedTuple):
    """Inputs stored with a policy and the actions it must give for them."""

    state: np.ndarray  # [rows, state_dim] float32
    goal: np.ndarray  # [rows, goal_dim] float32
    action: np.ndarray  # [rows, action_dim] float32


@dataclasses.dataclass(frozen=True)
class Bundle:
    """One verified policy, in memory."""

    path: Path
    version: int
    spec: PolicySpec
    params: PolicyParams  # numpy leaves, float32
    probes: Probes
    provenance: Mapping[str, Any]
    manifest_sha256: str


def publish(
    root: Path,
    version: int,
    *,
    spec: PolicySpec,
    params: PolicyParams,
    probe_state: np.ndarray,
    probe_goal: np.ndarray,
    provenance: Mapping[str, Any],
) -> Path:
    """Write version `version` of a policy under `root` and return its folder. Whatever is there already stays as it is.

    One process publishes under a root at a time: what a killed one left unfinished there is swept away first.

    Args:
        version: the training step, not negative; it names the folder.
        probe_state: [rows, state_dim], inputs whose actions are stored for verification.
        probe_goal: [rows, goal_dim].
        provenance: JSON-compatible facts about how the policy came to be.

    Raises:
        FileExistsError: that version is already published; a published policy never changes.
        ValueError: the version is negative, the parameters or probes do not fit `spec`, or a probe's action is not
            finite; such a policy could not be read, or not be used.
        OSError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    if version < 0:
        raise ValueError(f"version must be a training step, 0 or more, not {version}")
    target = root / str(version)
    if target.exists():
        raise FileExistsError(f"{target} is already published; a published policy never changes")
    if difference := _first_difference(params, _expected_params(spec)):
        raise ValueError(f"the parameters do not fit the specification: {difference}")
    _check_probe_shape("probe_state", probe_state, width=spec.state_dim, rows=len(probe_state))
    _check_probe_shape("probe_goal", probe_goal, width=spec.goal_dim, rows=len(probe_state))
    probes = _probe(params, probe_state, probe_goal)
    root.mkdir(parents=True, exist_ok=True)
    for leftover in root.glob(f"{_SCRATCH}*"):
        shutil.rmtree(leftover)  # of a publisher that was killed
    scratch = root / f"{_SCRATCH}{version}-{uuid.uuid4().hex[:8]}"
    try:
        scratch.mkdir()
        description = {"format": FORMAT_VERSION, "spec": dataclasses.asdict(spec), "provenance": dict(provenance)}
        (scratch / "policy.json").write_text(json.dumps(description, indent=2) + "\n")
        np.savez(scratch / "probes.npz", **probes._asdict())
        _save_params(scratch.absolute() / "params", params)
        manifest = {"format": FORMAT_VERSION, "files": {name: _fingerprint(path) for name, path in _files(scratch)}}
        (scratch / "manifest.json").write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
        for folder, _, names in os.walk(scratch):
            for name in (*names, "."):
                _fsync(Path(folder) / name)
        scratch.rename(target)
    except BaseException:
        _remove(scratch)
        raise
    _fsync(root)
    return target


def versions(root: Path) -> list[int]:
    """The versions published under `root`, oldest first; unverified. Empty if there is none or no such folder."""
    if not root.is_dir():
        return []
    return sorted(int(entry.name) for entry in root.iterdir() if entry.is_dir() and _is_version(entry.name))


def read(path: Path) -> Bundle:
    """Verify the bundle at `path` and load it.

    Raises:
        BundleError: it is missing, damaged, or does not give its probes' actions; `reason` says which.
        OSError: a file cannot be read.
    """
    if not path.is_dir() or not _is_version(path.name):
        raise BundleError(path, "missing", "no published version of that name is there")
    manifest_sha256 = _verify_files(path)
    spec, provenance = _read_description(path)
    params = _read_params(path, spec)
    probes = _read_probes(path, spec)
    _verify_probes(path, params, probes)
    return Bundle(
        path=path,
        version=int(path.name),
        spec=spec,
        params=params,
        probes=probes,
        provenance=provenance,
        manifest_sha256=manifest_sha256,
    )


def _probe(params: PolicyParams, state: np.ndarray, goal: np.ndarray) -> Probes:
    state, goal = np.asarray(state, np.float32), np.asarray(goal, np.float32)
    with jax.default_matmul_precision("highest"):
        action = np.asarray(jax.jit(act)(params, state, goal))
    if not np.isfinite(action).all():
        raise ValueError("the policy gives actions that are not finite, so it is not published; look at the losses")
    return Probes(state, goal, action)


def _check_probe_shape(name: str, array: np.ndarray, *, width: int, rows: int) -> None:
    if not rows or np.shape(array) != (rows, width):
        raise ValueError(
            f"{name} must be at least one row of {width} values, as many as the other, not {np.shape(array)}"
        )


def _save_params(folder: Path, params: PolicyParams) -> None:
    try:
        ocp.PyTreeCheckpointer().save(folder, _to_tree(params))
    except OSError:
        raise
    except Exception as error:  # what tensorstore could not write, Orbax reports as a ValueError
        raise OSError(f"{folder} cannot be written: {_first_line(error)}") from error


def _remove(scratch: Path) -> None:
    """Remove what a failed publication left, until it stays away: Orbax may still be writing to it."""
    for _ in range(_REMOVALS):
        shutil.rmtree(scratch, ignore_errors=True)
        time.sleep(_REMOVAL_PAUSE_S)
        if not scratch.exists():
            return


def _verify_files(path: Path) -> str:
    """Compare the folder with its manifest, file by file; return the manifest's own SHA-256."""
    manifest_path = path / "manifest.json"
    if not _is_own_file(manifest_path):
        raise BundleError(path, "manifest", "manifest.json is missing, or not a plain file")
    raw = manifest_path.read_bytes()
    try:
        manifest = json.loads(raw)
        stated_format = manifest["format"]
        expected = {str(name): (entry["size"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except _MALFORMED as error:
        raise BundleError(path, "manifest", f"manifest.json cannot be understood: {error!r}") from error
    if stated_format != FORMAT_VERSION:
        detail = f"manifest.json is of format {stated_format!r:.80}, not {FORMAT_VERSION}, the one this version reads"
        raise BundleError(path, "manifest", detail)
    present = {name: file for name, file in _files(path) if name != "manifest.json"}
    if links := sorted(name for name, file in present.items() if not _is_own_file(file)):
        raise BundleError(path, "files", f"{links[0]} is a link or not a plain file")
    if missing := sorted(expected.keys() - present.keys()):
        raise BundleError(path, "files", f"{missing[0]:.200} is missing")
    if foreign := sorted(name for name in present if name not in expected or not _is_of_a_bundle(name)):
        raise BundleError(path, "files", f"{foreign[0]} does not belong to it")
    for name, (size, digest) in expected.items():
        if present[name].stat().st_size != size:
            raise BundleError(path, "hash", f"{name} holds {present[name].stat().st_size} bytes instead of {size}")
        if _sha256(present[name]) != digest:
            raise BundleError(path, "hash", f"{name} has changed since it was published")
    return hashlib.sha256(raw).hexdigest()


def _read_description(path: Path) -> tuple[PolicySpec, Mapping[str, Any]]:
    try:
        description = json.loads((path / "policy.json").read_text())
        if description["format"] != FORMAT_VERSION:
            detail = f"format {description['format']!r:.80} is not {FORMAT_VERSION}, the one this version reads"
            raise BundleError(path, "spec", detail)
        return PolicySpec.from_fields(description["spec"]), description["provenance"]
    except (*_MALFORMED, SpecError, FileNotFoundError) as error:
        raise BundleError(path, "spec", f"policy.json: {error}") from error


def _read_params(path: Path, spec: PolicySpec) -> PolicyParams:
    """Load the arrays, after comparing every declared shape and dtype with the specification.

    The comparison has to come first: an array declared too large for memory ends the process, not the restore. It
    costs some 170 KiB a call that tensorstore 0.1.86 never gives back (TensorStore.Spec.to_json, called by Orbax).
    """
    expected = _expected_params(spec)
    template = _to_tree(expected)
    checkpointer = ocp.PyTreeCheckpointer()
    folder = path.absolute() / "params"
    try:
        metadata: Any = checkpointer.metadata(folder).item_metadata
        declared = metadata.tree
    except Exception as error:  # Orbax raises whatever the file it tripped over raised
        raise BundleError(path, "arrays", f"params/ cannot be read: {_first_line(error)}") from error
    if difference := _first_difference(declared, template):
        raise BundleError(path, "arrays", difference)
    restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), template)
    try:
        tree = checkpointer.restore(folder, args=ocp.args.PyTreeRestore(restore_args=restore_args))
    except Exception as error:
        raise BundleError(path, "arrays", f"params/ cannot be read: {_first_line(error)}") from error
    return _from_tree(tree, expected)


def _read_probes(path: Path, spec: PolicySpec) -> Probes:
    try:
        # Opened here, because numpy leaves a file open that turns out not to be an archive.
        with (path / "probes.npz").open("rb") as file, np.load(file, allow_pickle=False) as stored:
            probes = Probes(*(stored[name] for name in Probes._fields))
    except Exception as error:  # numpy raises zipfile, zlib, ValueError, KeyError ... for a damaged archive
        raise BundleError(path, "probes", f"probes.npz cannot be read: {_first_line(error)}") from error
    if any(array.dtype != np.float32 for array in probes):
        raise BundleError(path, "probes", f"types {[str(array.dtype) for array in probes]} are not all float32")
    sizes = (spec.state_dim, spec.goal_dim, spec.action_dim)
    rows = probes.state.shape[:1]
    if not rows or not rows[0] or any(array.shape != (*rows, size) for array, size in zip(probes, sizes, strict=True)):
        raise BundleError(path, "probes", f"shapes {[array.shape for array in probes]} do not fit sizes {sizes}")
    return probes


def _verify_probes(path: Path, params: PolicyParams, probes: Probes) -> None:
    try:
        again = _probe(params, probes.state, probes.goal)
    except ValueError as error:
        raise BundleError(path, "probes", str(error)) from error
    worst = float(np.max(np.abs(again.action - probes.action)))
    if not worst <= PROBE_TOLERANCE:
        detail = f"actions differ from the published ones by {worst:.2g}, more than {PROBE_TOLERANCE}"
        raise BundleError(path, "probes", detail)


def _expected_params(spec: PolicySpec) -> PolicyParams:
    """The shapes and dtypes of the parameters of `spec`, without their values."""
    return jax.eval_shape(lambda: init_policy(jax.random.key(0), spec))


def _first_difference(tree: Any, template: Any) -> str:
    """The first array of `tree` that is not shaped or typed as in `template`, in words; empty if there is none."""
    found, expected = _shapes(tree), _shapes(template)
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            return f"array {name} is {found.get(name)} where the specification has {expected.get(name)}"
    return ""


def _first_line(error: Exception) -> str:
    """What a foreign error says, short enough for a log."""
    return next(iter(str(error).splitlines()), repr(error))[:300]


def _to_tree(params: Any) -> dict[str, Any]:
    """The arrays as dictionaries within dictionaries, the one shape that Orbax gives back as it was saved."""
    tree: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        *folders, name = _name(path).split(".")
        functools.reduce(lambda node, folder: node.setdefault(folder, {}), folders, tree)[name] = leaf
    return tree


def _from_tree(tree: dict[str, Any], like: Any) -> Any:
    """The arrays of `tree` in the structure of `like`, which `_to_tree` made it from."""

    def find(path: Any, _: Any) -> Any:
        return functools.reduce(lambda node, name: node[name], _name(path).split("."), tree)

    return jax.tree_util.tree_map_with_path(find, like)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _shapes(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of every array in `tree`, by its dotted name."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: hasattr(node, "shape"))
    return {_name(path): (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in leaves}


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every entry below `folder` that is not a folder, by its name relative to it; links are not followed."""
    for parent, folders, names in os.walk(folder):
        for name in (*names, *(entry for entry in folders if (Path(parent) / entry).is_symlink())):
            path = Path(parent) / name
            yield path.relative_to(folder).as_posix(), path


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_own_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _is_of_a_bundle(name: str) -> bool:
    return name in {"policy.json", "probes.npz"} or name.startswith("params/")


def _is_version(name: str) -> bool:
    """Decimal digits without a leading zero, so that a version has one name."""
    return name.isascii() and name.isdigit() and name == str(int(name))
