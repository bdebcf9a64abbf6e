"""Snapshots: Orbax checkpoints of the whole run state, to resume from.

Each is a folder named after its iteration; the latest two are kept. A snapshot within an iteration's round of gradient
steps is replaced by a later one of the same iteration: the old folder is set aside until the new one is complete.
"""

import errno
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

_MAX_TO_KEEP = 2
_ASIDE = ".replaced"  # suffix of a snapshot that a later one of the same iteration replaces


class SnapshotError(Exception):
    """There is no snapshot to resume from, or it cannot be read, or it does not fit the configuration."""


def save(folder: Path, iteration: int, *, state: Any) -> None:
    """Write `state`, any pytree of arrays and random keys, as the snapshot of `iteration`. Return when it is on disk.

    Raises:
        OSError: the disk is full or the folder cannot be written; earlier snapshots stay.
    """
    arrays = _to_arrays(state)
    _require_space(folder, sum(leaf.nbytes for leaf in arrays.values()))
    _tidy(folder)
    snapshot = folder / str(iteration)
    if snapshot.exists():
        snapshot.rename(snapshot.with_suffix(_ASIDE))
    try:
        with _manager(folder) as manager:
            manager.save(iteration, args=ocp.args.PyTreeSave(arrays))
    except OSError:
        raise
    except Exception as error:  # Orbax raises a ValueError if tensorstore cannot write
        raise OSError(f"the snapshot {snapshot} cannot be written: {error}") from error
    finally:
        _tidy(folder)


def _tidy(folder: Path) -> None:
    """Remove the snapshots that were replaced; bring back those whose replacement was never completed."""
    for aside in folder.glob(f"*{_ASIDE}"):
        if aside.with_suffix("").exists():
            shutil.rmtree(aside)
        else:
            aside.rename(aside.with_suffix(""))


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


def any_saved(folder: Path) -> bool:
    """Return whether there is a snapshot to resume from."""
    if not folder.is_dir():
        return False
    _tidy(folder)
    with _manager(folder) as manager:
        return manager.latest_step() is not None


def latest(folder: Path) -> int | None:
    """Return the iteration of the newest complete snapshot, or None if there is none; change nothing."""
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return max((int(name) for name in names if name.isdecimal()), default=None)


def restore_latest(folder: Path, *, like: Any) -> Any:
    """Return the newest snapshot, as a pytree with the structure, shapes and dtypes of `like`.

    Raises:
        SnapshotError: there is none, it cannot be read, or its arrays differ from those of `like`.
    """
    if folder.is_dir():
        _tidy(folder)
    with _manager(folder) as manager:
        iteration = manager.latest_step()
        if iteration is None:
            raise SnapshotError(f"there is no snapshot in {folder} to resume from; start again with --overwrite")
        expected = _to_arrays(like)
        restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), expected)
        try:
            arrays = manager.restore(iteration, args=ocp.args.PyTreeRestore(expected, restore_args=restore_args))
        except Exception as error:  # Orbax raises different exceptions for damaged files
            broken, reason = folder / str(iteration), str(error).partition("\n")[0][:200]
            raise SnapshotError(
                f"the snapshot {broken} cannot be read: {reason}; remove it to resume from the previous one"
            ) from error
    for name, array in arrays.items():
        if array.shape != expected[name].shape or array.dtype != expected[name].dtype:
            detail = f"{name} is {array.shape} {array.dtype}, expected {expected[name].shape} {expected[name].dtype}"
            raise SnapshotError(f"the snapshot {folder / str(iteration)} does not fit this run: {detail}")
    return _from_arrays(arrays, like)


def _manager(folder: Path) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        max_to_keep=_MAX_TO_KEEP, enable_async_checkpointing=False, cleanup_tmp_directories=True
    )
    return ocp.CheckpointManager(folder.absolute(), options=options)


def _to_arrays(state: Any) -> dict[str, Any]:
    """Return the leaves by name: random keys as their data, and no empty arrays, which Orbax refuses."""
    leaves = {name: _key_data(leaf) for name, leaf in _named_leaves(state)}
    return {name: leaf for name, leaf in leaves.items() if leaf.size}


def _from_arrays(arrays: dict[str, Any], like: Any) -> Any:
    leaves = [
        jax.random.wrap_key_data(jnp.asarray(arrays[name])) if _is_key(leaf) else jnp.asarray(arrays.get(name, leaf))
        for name, leaf in _named_leaves(like)
    ]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _named_leaves(tree: Any) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_data(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf
