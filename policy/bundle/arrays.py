"""params/: the parameters of a policy as Orbax arrays, compared with its specification before they are loaded.

Only networks have arrays. What else an action depends on, statistics and indices of quaternions, is in the
specification.
"""

import contextlib
import dataclasses
import functools
import re
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from policy.bundle.manifest import BundleError
from policy.bundle.probes import first_line
from policy.networks import Network, PolicyParams, init_policy
from policy.normalization import Normalization
from policy.spec import PolicySpec

_Shapes: TypeAlias = Mapping[str, tuple[tuple[int, ...], str]]  # the shape and dtype of each array

_NAME = "params"
_DAMAGE = frozenset({"DATA_LOSS", "FAILED_PRECONDITION", "INVALID_ARGUMENT", "NOT_FOUND", "OUT_OF_RANGE"})
_DATABASE = "manifest.ocdbt"  # its index: without it, tensorstore finds an empty database
_COMMITTED = "commit_success.txt"  # Orbax's mark of a complete folder
_ARRAY = "/.zarray"  # ends the key of the description of each array
_STATISTICS = ("normalization_mean", "normalization_std", "seen_mean", "seen_std", "seen_low", "seen_high")
# What Orbax 0.12 does not accept in a path: backslashes, bytes that are not UTF-8 (surrogates in Python), and when it
# saves, also the characters of patterns.
_ODD_TO_READ = re.compile(r"[\\\ud800-\udfff]")
_ODD_TO_SAVE = re.compile(r"[\\\ud800-\udfff*?\[]")


def require_fit(params: PolicyParams, spec: PolicySpec) -> None:
    """Refuse parameters that are not those of `spec`: other shapes, dtypes, statistics or indices of quaternions.

    Raises:
        ValueError: naming the first difference.
        FloatingPointError: naming the first array with NaN or infinity.
    """
    expected = _expected_params(spec)
    difference = _first_difference(_shapes(to_tree(params)), _shapes(to_tree(expected)))
    if params.quaternions != expected.quaternions:
        difference = f"quaternions are {params.quaternions} where the specification has {expected.quaternions}"
    ours, theirs = params.normalization, Normalization.from_spec(spec)
    if (ours is None) != (theirs is None) or not all(map(np.array_equal, ours or (), theirs or ())):
        difference = f"normalization is {ours} where the specification has {theirs}"
    if difference:
        raise ValueError(f"the parameters do not fit the specification: {difference}")
    if name := _first_non_finite(to_tree(params)):
        message = f"array {name} contains NaN or infinity, so the policy is not published; check the losses"
        raise FloatingPointError(message)


def save(folder: Path, params: PolicyParams) -> None:
    """Write the parameters into `folder`.

    Raises:
        OSError: they cannot be written.
    """
    try:
        with _plain_path(folder, odd=_ODD_TO_SAVE) as path:
            ocp.PyTreeCheckpointer().save(path / _NAME, to_tree(params))
            if (path / _NAME / _COMMITTED).exists():  # it has the absolute path of the folder
                (path / _NAME / _COMMITTED).write_text("Checkpoint commit was successful\n")
    except OSError:
        raise
    except Exception as error:  # Orbax raises a ValueError if tensorstore cannot write
        raise OSError(f"{_NAME} cannot be written: {first_line(error)}") from error


def read(path: Path, spec: PolicySpec) -> PolicyParams:
    """Load the parameters of the bundle at `path`, after comparing every declared shape and dtype with `spec`.

    The comparison comes first, because loading an array that is declared too large for memory ends the process.
    tensorstore reads the arrays, not Orbax, whose `restore` does not wait for the other reads when one fails. Each of
    those then logs an error with a traceback.

    Raises:
        BundleError: the arrays cannot be read, do not fit `spec`, or contain NaN or infinity.
    """
    try:
        expected = _expected_params(spec)
    except Exception as error:  # JAX raises TypeError, OverflowError ... for a size that no array can have
        raise BundleError(
            path, "arrays", f"no arrays of the specification's sizes exist: {first_line(error)}"
        ) from error
    with _plain_path(path, odd=_ODD_TO_READ) as plain:
        tree = _read_tree(path, plain / _NAME, template=to_tree(expected))
    if name := _first_non_finite(tree):
        raise BundleError(path, "arrays", f"array {name} contains NaN or infinity")
    return _from_tree(tree, spec, like=expected)


def _read_tree(path: Path, folder: Path, *, template: dict[str, Any]) -> dict[str, Any]:
    """Return the arrays in `folder` of the bundle at `path`, with the shapes and dtypes of `template`."""
    if not (folder / _DATABASE).is_file():
        raise BundleError(path, "arrays", f"{_NAME}/{_DATABASE} is missing, so it has no arrays")
    database = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}}
    try:
        keys = map(bytes.decode, tensorstore.KvStore.open(database).result().list().result())
        names = [key.removesuffix(_ARRAY) for key in keys if key.endswith(_ARRAY)]
    except Exception as error:  # tensorstore raises ValueError, OSError ... for damaged files
        raise BundleError(path, "arrays", f"{_NAME}/ cannot be read: {_problem(error)}") from error
    opening = {
        name: tensorstore.open(
            {"driver": "zarr", "kvstore": database | {"path": f"{name}/"}, "fill_missing_data_reads": False},
            open=True,
        )
        for name in names
    }
    stores = _results(path, opening)
    declared = {name: (tuple(store.shape), str(store.dtype.numpy_dtype)) for name, store in stores.items()}
    if difference := _first_difference(declared, _shapes(template)):
        raise BundleError(path, "arrays", difference)
    arrays = _results(path, {name: store.read() for name, store in stores.items()})
    return jax.tree_util.tree_map_with_path(lambda leaf, _: arrays[_dotted(leaf)], template)


def _results(path: Path, futures: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results of tensorstore's `futures`, each of one array."""
    results: dict[str, Any] = {}
    for name, future in futures.items():
        try:
            results[name] = future.result()
        except Exception as error:  # tensorstore raises ValueError, OSError ... for damaged files
            raise BundleError(path, "arrays", f"array {name} cannot be read: {_problem(error)}") from error
    return results


def _problem(error: Exception) -> str:
    """Return why tensorstore cannot read, in plain words if its files are damaged."""
    line = first_line(error)
    code = line.partition(":")[0]
    return f"its data is missing or damaged ({code})" if code in _DAMAGE else line


@contextlib.contextmanager
def _plain_path(folder: Path, *, odd: re.Pattern[str]) -> Generator[Path]:
    """Yield an absolute path of `folder`: its own, or if that has anything `odd`, a link in a temporary folder."""
    path = folder.absolute()
    if not odd.search(str(path)):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="kilolayer-") as scratch:
        link = Path(scratch) / "folder"
        link.symlink_to(path, target_is_directory=True)
        yield link


def to_tree(params: PolicyParams) -> dict[str, Any]:
    """Return the arrays as nested dictionaries, the one structure that Orbax restores exactly as it was saved."""
    return {name: network.params for name, network in _networks(params).items()}


def _from_tree(tree: dict[str, Any], spec: PolicySpec, *, like: PolicyParams) -> PolicyParams:
    """Return the policy of `spec` with the arrays of `tree`, in the structure of `like`."""
    loaded = {name: dataclasses.replace(network, params=tree[name]) for name, network in _networks(like).items()}
    return like._replace(**loaded, normalization=jax.tree.map(np.asarray, Normalization.from_spec(spec)))


def _networks(params: PolicyParams) -> dict[str, Network]:
    return {name: part for name, part in params._asdict().items() if isinstance(part, Network)}


def _expected_params(spec: PolicySpec) -> PolicyParams:
    """Return the shapes and dtypes of the parameters of `spec`, without values and without statistics."""
    statistics = dict.fromkeys(_STATISTICS, ())  # which each version has of its own
    return _traced_params(dataclasses.replace(spec, name="any", normalize_observations=False, **statistics))


@functools.lru_cache(maxsize=16)  # tracing takes longer than reading a small policy
def _traced_params(spec: PolicySpec) -> PolicyParams:
    return jax.eval_shape(lambda: init_policy(jax.random.key(0), spec))


def _first_difference(found: _Shapes, expected: _Shapes) -> str:
    """Describe the first array whose shape or dtype differs from the expected one; empty if there is none."""
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f"array {name} of the specification is missing"
        if name not in expected:
            return f"array {name} is not in the specification"
        if found[name] != expected[name]:
            return f"array {name} is {_words(found[name])} where the specification has {_words(expected[name])}"
    return ""


def _words(shape: tuple[tuple[int, ...], str]) -> str:
    sizes, dtype = shape
    return f"{list(sizes)} {dtype}"


def _first_non_finite(tree: Any) -> str:
    """Return the name of the first array of `tree` with NaN or infinity; empty if there is none."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return next((_dotted(path) for path, leaf in leaves if not np.isfinite(leaf).all()), "")


def _shapes(tree: Any) -> _Shapes:
    """Return the shape and dtype of every array in `tree`, by its dotted name."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: hasattr(node, "shape"))
    return {_dotted(path): (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in leaves}


def _dotted(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
