"""Damage a published policy in every way: each file by itself, and arrays with hashes that match them.

    for mutant in (*file_mutants(version), *array_mutants(version)):
        copy = shutil.copytree(version, folder / "1000")
        mutant.apply(copy)

A server must refuse every one of them. `file_mutants` changes files after publication, as a faulty disk or a careless
copy does. `array_mutants` changes the arrays and writes matching hashes, as a faulty publisher does. What
`harmless_links` yields must be served: symbolic links to the same content under the folder with the versions.
"""

import dataclasses
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore

from policy import bundle, verified_folder

_PICKLE = b"\x80\x04N."  # None
_HUGE = 10**6


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One damage: what it does to a copy of the bundle."""

    name: str
    apply: Callable[[Path], None]

    def __repr__(self) -> str:
        return self.name


def file_mutants(version: Path) -> Iterator[Mutant]:
    """Yield every damage of every file of the bundle at `version`. The bundle itself is only read."""
    names = sorted(name for name, _ in verified_folder.files(version))
    for name, following in zip(names, [*names[1:], names[0]], strict=True):
        size = (version / name).stat().st_size
        for position in sorted({0, size // 2, size - 1}):
            yield Mutant(f"flip a bit of byte {position} of {name}", _on_file(name, _flip, position))
        for length in sorted({0, size // 2, size - 1}):
            yield Mutant(f"truncate {name} to {length} bytes", _on_file(name, _truncate, length))
        yield Mutant(f"append to {name}", _on_file(name, _append))
        yield Mutant(f"delete {name}", _on_file(name, Path.unlink))
        yield Mutant(f"link {name} to the same content outside", _on_file(name, _symlink, None))
        yield Mutant(f"link {name} to other content outside", _on_file(name, _symlink, _PICKLE))
        yield Mutant(f"link {name} to other content inside", _on_file(name, _symlink_inside, _PICKLE))
        yield Mutant(f"link {name} to nothing", _on_file(name, _dangle))
        yield Mutant(f"hard link {name} to other content outside", _on_file(name, _hard_link))
        yield Mutant(f"replace {name} by a folder", _on_file(name, _replace_by_folder))
        if (version / name).read_bytes() != (version / following).read_bytes():
            yield Mutant(f"swap {name} and {following}", _swap(name, following))
    folders = sorted({path.relative_to(version).as_posix() for path in version.rglob("*") if path.is_dir()})
    for folder in (".", *folders):
        yield Mutant(f"a foreign file in {folder}", _on_file(folder, _foreign))
    for folder in folders:
        yield Mutant(f"link the folder {folder} to outside", _on_file(folder, _symlink, None))
        yield Mutant(f"delete the folder {folder}", _on_file(folder, shutil.rmtree))


def harmless_links(version: Path) -> Iterator[Mutant]:
    """Yield links in place of every file and every folder of the bundle at `version`. They change no content."""
    for path in sorted(version.rglob("*")):
        name = path.relative_to(version).as_posix()
        yield Mutant(f"link {name} to the same content inside", _on_file(name, _symlink_inside, None))


def array_mutants(version: Path) -> Iterator[Mutant]:
    """Yield damages of every array of the bundle at `version`, and of every array of its probes, with matching hashes.

    Other values differ from element to element, because a layer norm subtracts what all elements have in common.
    """
    for name in array_names(version):
        for value in (np.nan, np.inf, -np.inf):
            yield Mutant(f"one {value} in array {name}", _change_array(name, _set_last(value)))
        yield Mutant(f"other values in array {name}", _change_array(name, _shift))
        yield Mutant(f"array {name} declared huge", _declare_huge(name))
    with np.load(version / "probes.npz", allow_pickle=False) as stored:
        probes = sorted(name for name, array in stored.items() if array.size)
    for name in probes:
        yield Mutant(f"NaN in probe {name}", _change_probe(name, _set_last(np.nan)))
        yield Mutant(f"other values in probe {name}", _change_probe(name, _shift))


def one_of_each_kind(version: Path) -> list[Mutant]:
    """Return one mutant of each kind of damage, by the first two words of its name."""
    of_kind: dict[str, Mutant] = {}
    for mutant in (*file_mutants(version), *array_mutants(version)):
        if re.search(r"probes\.npz|in array goal_encoder\.output\.bias|in probe (energy|sampled_action)", mutant.name):
            of_kind[" ".join(mutant.name.split()[:2])] = mutant
    return list(of_kind.values())


def array_names(version: Path) -> list[str]:
    """Return the dotted names of the arrays of the bundle at `version`, such as `actor.input.kernel`."""
    store = tensorstore.KvStore.open(_store(version)).result()
    keys = [key.decode() for key in store.list().result()]
    return sorted(key.removesuffix("/.zarray") for key in keys if key.endswith("/.zarray"))


def match_hashes(version: Path) -> None:
    """Write a manifest that fits the files as they are now."""
    (version / "manifest.json").unlink(missing_ok=True)
    verified_folder.write_manifest(version, bundle.FORMAT_VERSION)


def _on_file(name: str, damage: Callable[..., Any], *arguments: Any) -> Callable[[Path], None]:
    return lambda version: damage(version / name, *arguments)


def _flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


def _truncate(file: Path, length: int) -> None:
    file.write_bytes(file.read_bytes()[:length])


def _append(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


def _outside(path: Path) -> Path:
    """Return a place beside the folder of the versions, so outside of every bundle."""
    version = next(parent for parent in path.parents if parent.name.isdecimal())
    outside = version.parent.parent / "outside" / version.name
    outside.parent.mkdir(exist_ok=True)
    return outside


def _inside(path: Path) -> Path:
    """Return a place in the folder of the versions, and in none of them."""
    version = next(parent for parent in path.parents if parent.name.isdecimal())
    inside = version.parent / "blobs" / path.relative_to(version.parent).as_posix().replace("/", "-")
    inside.parent.mkdir(exist_ok=True)
    return inside


def _symlink(path: Path, content: bytes | None) -> None:
    """Move a file or a folder out of the bundle and leave a link to it; or a link to a file with other `content`."""
    _move_and_link(path, _outside(path), content)


def _symlink_inside(path: Path, content: bytes | None) -> None:
    """Do the same to a place that is still in the folder of the versions."""
    _move_and_link(path, _inside(path), content)


def _move_and_link(path: Path, place: Path, content: bytes | None) -> None:
    path.rename(place)
    if content is not None:
        place.write_bytes(content)
    path.symlink_to(place)


def _dangle(file: Path) -> None:
    file.unlink()
    file.symlink_to(_outside(file))


def _hard_link(file: Path) -> None:
    """Make the file a hard link to a file outside with other content of the same size."""
    outside = file.rename(_outside(file))
    _flip(outside, outside.stat().st_size // 2)
    file.hardlink_to(outside)


def _replace_by_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _foreign(folder: Path) -> None:
    (folder / "params.pkl").write_bytes(_PICKLE)


def _swap(first: str, second: str) -> Callable[[Path], None]:
    def swap(version: Path) -> None:
        content = (version / first).read_bytes()
        (version / first).write_bytes((version / second).read_bytes())
        (version / second).write_bytes(content)

    return swap


def _set_last(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array.flat[-1] = value
        return array

    return change


def _shift(array: np.ndarray) -> np.ndarray:
    return array + np.linspace(0.5, 1.5, array.size, dtype=array.dtype).reshape(array.shape)


def _change_array(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def apply(version: Path) -> None:
        array = _open(version, name)
        array.write(change(np.array(array.read().result()))).result()
        match_hashes(version)

    return apply


def _declare_huge(name: str) -> Callable[[Path], None]:
    def apply(version: Path) -> None:
        array = _open(version, name)
        array.resize(exclusive_max=[_HUGE] * array.rank, resize_metadata_only=True).result()
        match_hashes(version)

    return apply


def _change_probe(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def apply(version: Path) -> None:
        file = version / "probes.npz"
        with np.load(file, allow_pickle=False) as stored:
            probes = dict(stored)
        np.savez(file, **(probes | {name: change(probes[name])}))  # type: ignore[arg-type]
        match_hashes(version)

    return apply


def _open(version: Path, name: str) -> Any:
    return tensorstore.open({"driver": "zarr", "kvstore": _store(version) | {"path": f"{name}/"}}).result()


def _store(version: Path) -> dict[str, Any]:
    return {"driver": "ocdbt", "base": f"file://{version / 'params'}/"}
