"""Snapshots: the whole run state on disk, to resume from.

    <folder>/<iteration>/state.npz       every array by its name in the state; random keys as their data
                         manifest.json   its size and SHA-256

The latest two are kept. A snapshot within an iteration's round of gradient steps is replaced by a later one of the same
iteration. `policy/verified_folder.py` has the order in which the files reach the disk.

Large arrays are read a part at a time into arrays that are there already, so that resuming takes hardly more memory
than starting.
"""

import errno
import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from policy import verified_folder
from policy.verified_folder import DamageError
from training.budgets.memory_budget import RESTORED_BYTES
from training.run_dir import array_file, snapshots
from training.run_dir.array_file import ArrayFile, ArrayFileError, Header

_FORMAT = 2  # 1 was an Orbax checkpoint without a manifest
_MARK_OF_FORMAT_1 = "_CHECKPOINT_METADATA"
_STATE = "state.npz"
_MAX_TO_KEEP = 2
_ASIDE = ".damaged"  # suffix of a damaged snapshot that was passed over
_SMALL_BYTES = 1 << 20  # up to this size an array is read as a whole and replaces the one that is there


class SnapshotError(Exception):
    """There is no snapshot to resume from, or it cannot be read, or it does not fit the configuration."""


def save(folder: Path, iteration: int, *, state: Any) -> None:
    """Write `state`, any pytree of arrays and random keys, as the snapshot of `iteration`. Return when it is on disk.

    Raises:
        OSError: the disk is full, or the folder cannot be written or read back; earlier snapshots stay.
    """
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in _to_arrays(state).items()}
    verified_folder.sweep(folder)
    _require_space(folder, sum(array.nbytes for array in arrays.values()))
    verified_folder.create(
        folder / str(iteration),
        fill=lambda scratch: array_file.write(scratch / _STATE, arrays),
        check=functools.partial(_require_readable, arrays=arrays),
        format_version=_FORMAT,
        what="the snapshot",
    )
    for old in snapshots.iterations(folder)[:-_MAX_TO_KEEP]:
        verified_folder.remove(folder / str(old))


def any_saved(folder: Path) -> bool:
    """Return whether there is a snapshot, intact or not. Bring one back whose replacement was never completed."""
    verified_folder.sweep(folder)
    return latest(folder) is not None


def latest(folder: Path) -> int | None:
    """Return the iteration of the newest snapshot, unverified, or None if there is none; change nothing."""
    return max(snapshots.iterations(folder), default=None)


def restore_latest(folder: Path, *, like: Any, say: Callable[[str], None] | None = None) -> Any:
    """Return the newest intact snapshot, as a pytree with the structure, shapes and dtypes of `like`.

    Newer ones that are damaged are set aside: they get the suffix `.damaged`.

    Args:
        like: arrays and random keys. Arrays above 1 MiB are overwritten: do not use them afterwards.
        say: receives a line for every snapshot that is set aside.

    Raises:
        SnapshotError: there is none, none is intact, or its arrays differ from those of `like`.
        OSError: a file cannot be read, for another reason than damage.
    """
    path = _newest_intact(folder, say=say or (lambda _: None))
    try:
        with ArrayFile(path / _STATE) as file:
            _require_same_arrays(path, file, _to_arrays(like))
            return _from_arrays(file, like)
    except ArrayFileError as error:
        raise SnapshotError(f"the snapshot {path} cannot be read: {error}") from error


def _newest_intact(folder: Path, *, say: Callable[[str], None]) -> Path:
    """Return the folder of the newest snapshot that is as it was written. Set newer ones aside."""
    verified_folder.sweep(folder)
    damaged: dict[Path, str] = {}
    for iteration in reversed(snapshots.iterations(folder)):
        path = folder / str(iteration)
        problem = _problem(path)
        if not problem:
            for broken, reason in damaged.items():
                say(f"warning: the snapshot {broken} is damaged ({reason}); it is now {_set_aside(broken).name}")
            return path
        damaged[path] = problem
    found = "; ".join(f"{path.name} is damaged ({reason})" for path, reason in damaged.items())
    raise SnapshotError(
        f"there is no intact snapshot in {folder} to resume from{': ' if found else ''}{found}; copy one from a "
        "backup, or start a new run with another --out"
    )


def _problem(path: Path) -> str:
    """Return what is damaged in the snapshot at `path`; empty if nothing is.

    Raises:
        SnapshotError: the snapshot has a format that this version does not read.
    """
    if (path / _MARK_OF_FORMAT_1).exists():
        raise SnapshotError(
            f"the snapshot {path} has format 1, and this version reads format {_FORMAT}; resume with the version that "
            "saved it, or start a new run with --init-from and the run's policies/ (docs/upgrading.md)"
        )
    try:
        verified_folder.verify(path, format_version=_FORMAT, belongs=lambda name: name == _STATE)
    except DamageError as error:
        if error.reason == "format":
            raise SnapshotError(f"the snapshot {path} cannot be read: {error.detail}; use that version") from error
        return error.detail
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return str(error)
    return ""


def _set_aside(path: Path) -> Path:
    """Rename a damaged snapshot; return its new path."""
    names = (f"{path.name}{_ASIDE}{f'-{number}' if number else ''}" for number in range(1_000_000))
    aside = next(path.with_name(name) for name in names if not path.with_name(name).exists())
    return path.rename(aside)


def _require_space(folder: Path, size: int) -> None:
    """Raise OSError if the disk does not have `size` bytes left."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OSError(
            errno.ENOSPC,
            f"a snapshot needs {size / 1e6:,.0f} MB, but the disk of {folder} has only {free / 1e6:,.0f} MB left; free "
            "some space, lower --max-replay-size, or leave the replay buffer out with --no-snapshot-replay",
        )


def _require_readable(scratch: Path, *, arrays: dict[str, np.ndarray]) -> None:
    """Raise OSError unless the file has `arrays`."""
    try:
        with ArrayFile(scratch / _STATE) as file:
            _require_same_arrays(scratch, file, arrays)
            file.require_intact()
    except (ArrayFileError, SnapshotError) as error:
        raise verified_folder.unreadable(str(error)) from error


def _require_same_arrays(path: Path, file: ArrayFile, expected: dict[str, Any]) -> None:
    """Refuse a file that has other arrays than `expected`."""
    for name in sorted(file.headers.keys() | expected.keys()):
        leaf, theirs = expected.get(name), str(file.headers.get(name, "absent"))
        ours = "absent" if leaf is None else str(Header(leaf.shape, leaf.dtype))
        if ours != theirs:
            raise SnapshotError(
                f"the snapshot {path} does not fit this run: {name} is {theirs}, expected {ours}; resume with the "
                "version and the settings that saved it"
            )


def _from_arrays(file: ArrayFile, like: Any) -> Any:
    """Return `like` with the arrays of `file`, one after another."""
    leaves: list[Any] = []
    for name, leaf in _named_leaves(like):
        if _is_key(leaf):
            leaves.append(jax.random.wrap_key_data(jnp.asarray(file.read(name))))
        elif leaf.nbytes <= _SMALL_BYTES:
            leaves.append(jnp.asarray(file.read(name)))
        else:
            leaves.append(_overwrite(leaf, file.read_parts(name, part_bytes=RESTORED_BYTES // 2)))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _overwrite(array: jax.Array, parts: Iterator[np.ndarray]) -> jax.Array:
    """Return `array`, in the same memory, with the values of `parts`, which follow one another on the first axis."""
    start = 0
    for part in parts:
        array = jax.block_until_ready(_write(array, part, start))
        start += len(part)
    return array


@functools.partial(jax.jit, donate_argnums=0)
def _write(array: jax.Array, part: jax.Array, start: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(array, part, start, axis=0)


def _to_arrays(state: Any) -> dict[str, Any]:
    """Return the leaves by name, random keys as their data."""
    return {name: jax.random.key_data(leaf) if _is_key(leaf) else leaf for name, leaf in _named_leaves(state)}


def _named_leaves(tree: Any) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
