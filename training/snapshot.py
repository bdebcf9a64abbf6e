"""The whole trainer state on disk, to resume from: Orbax arrays, one folder per iteration, the latest two kept."""

import errno
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

_KEPT = 2


class SnapshotError(Exception):
    """There is no snapshot to resume from, or it does not fit the configuration."""


def save(folder: Path, iteration: int, *, state: Any) -> None:
    """Write `state`, any pytree of arrays and random keys, as the snapshot of `iteration`. Returns once it is on disk.

    Raises:
        OSError: the disk is full or the folder cannot be written; earlier snapshots stay.
    """
    arrays = _to_arrays(state)
    _require_space(folder, sum(leaf.nbytes for leaf in arrays.values()))
    with _manager(folder) as manager:
        if iteration in manager.all_steps():
            return  # a step is saved once: the same state, after a stop or a kill
        try:
            manager.save(iteration, args=ocp.args.PyTreeSave(arrays))
        except OSError:
            raise
        except Exception as error:  # what tensorstore could not write, Orbax reports as a ValueError
            raise OSError(f"the snapshot {folder / str(iteration)} cannot be written: {error}") from error


def _require_space(folder: Path, size: int) -> None:
    """Refuse to begin what the disk has no room for."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if size > free:
        detail = f"a snapshot takes {size / 1e6:,.0f} MB and the disk of {folder} has {free / 1e6:,.0f} MB left"
        raise OSError(
            errno.ENOSPC, f"{detail}; free some, lower replay_capacity, or leave it out: --snapshot-replay off"
        )


def any_saved(folder: Path) -> bool:
    """Whether there is a snapshot to resume from."""
    if not folder.is_dir():
        return False
    with _manager(folder) as manager:
        return manager.latest_step() is not None


def restore_latest(folder: Path, *, like: Any) -> Any:
    """The newest snapshot, as a pytree of the structure, shapes and dtypes of `like`.

    Raises:
        SnapshotError: there is none, or it holds other arrays than `like`.
    """
    with _manager(folder) as manager:
        iteration = manager.latest_step()
        if iteration is None:
            raise SnapshotError(f"there is no snapshot under {folder} to resume from; start the run with --overwrite")
        expected = _to_arrays(like)
        restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), expected)
        try:
            arrays = manager.restore(iteration, args=ocp.args.PyTreeRestore(expected, restore_args=restore_args))
        except Exception as error:  # Orbax raises whatever the file it tripped over raised
            broken, reason = folder / str(iteration), str(error).partition("\n")[0][:200]
            raise SnapshotError(
                f"the snapshot {broken} cannot be read: {reason}; remove it to resume from the one before it"
            ) from error
    for name, array in arrays.items():
        if array.shape != expected[name].shape or array.dtype != expected[name].dtype:
            detail = f"{name} is {array.shape} {array.dtype}, not {expected[name].shape} {expected[name].dtype}"
            raise SnapshotError(f"the snapshot {folder / str(iteration)} does not fit this run: {detail}")
    return _from_arrays(arrays, like)


def _manager(folder: Path) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        max_to_keep=_KEPT, enable_async_checkpointing=False, cleanup_tmp_directories=True
    )
    return ocp.CheckpointManager(folder.absolute(), options=options)


def _to_arrays(state: Any) -> dict[str, Any]:
    """The leaves by name; random keys as their data, and without the empty arrays, which Orbax refuses."""
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
