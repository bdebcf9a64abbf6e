"""Many arrays in one file, in numpy's .npz format, which are read one at a time and in parts.

numpy reads an array only as a whole. A replay buffer can take most of the memory, so it must be read in parts.
"""

import functools
import math
import zipfile
import zlib
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

import numpy as np

_BROKEN = (zipfile.BadZipFile, zlib.error, ValueError, KeyError, EOFError, NotImplementedError)  # of damaged files
_BLOCK_BYTES = 1 << 20  # zipfile copies what it reads


class ArrayFileError(Exception):
    """A file that is damaged or has no arrays in this format."""


class Header(NamedTuple):
    """What an array is, without its values."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        return f"{self.shape} {self.dtype}"


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write `arrays` by their names, with a checksum of each as it is in memory.

    Raises:
        OSError: the file cannot be written.
    """
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


class ArrayFile:
    """The arrays in a file; a context manager that closes it.

    Raises:
        ArrayFileError: the file is damaged. So do the methods.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        with _named_errors(path):
            self._archive = zipfile.ZipFile(path)
        self._path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._archive.close()

    @functools.cached_property
    def headers(self) -> dict[str, Header]:
        """The header of each array, by its name."""
        headers: dict[str, Header] = {}
        for entry in self._archive.namelist():
            with _named_errors(self._path), self._archive.open(entry) as file:
                headers[entry.removesuffix(".npy")] = _read_header(file)
        return headers

    def require_intact(self) -> None:
        """Read all arrays and compare them with their checksums."""
        with _named_errors(self._path):
            changed = self._archive.testzip()
        if changed:
            raise ArrayFileError(f"{changed} in {self._path} has changed")

    def read(self, name: str) -> np.ndarray:
        """Return an array."""
        (array,) = self._read(name, lengths=None)
        return array

    def read_parts(self, name: str, *, part_bytes: int) -> Iterator[np.ndarray]:
        """Yield parts of an array along its first axis, of at most `part_bytes` each, but of one row at least."""
        shape, dtype = self.headers[name]
        rows = max(1, part_bytes // max(1, dtype.itemsize * math.prod(shape[1:])))
        return self._read(name, lengths=[min(rows, shape[0] - first) for first in range(0, shape[0], rows)])

    def _read(self, name: str, *, lengths: list[int] | None) -> Iterator[np.ndarray]:
        """Yield parts of these lengths along the first axis; without lengths, the whole array."""
        with _named_errors(self._path), self._archive.open(f"{name}.npy") as file:
            shape, dtype = _read_header(file)
            for part_shape in [shape] if lengths is None else [(length, *shape[1:]) for length in lengths]:
                part = np.empty(part_shape, dtype)
                _read_into(file, part)
                yield part


def _read_into(file: IO[bytes], array: np.ndarray) -> None:
    content = array.reshape(-1).view(np.uint8).data
    while content:
        count = file.readinto(content[:_BLOCK_BYTES])  # pyright: ignore[reportAttributeAccessIssue]
        if not count:
            raise EOFError("an array is cut short")
        content = content[count:]


def _read_header(file: IO[bytes]) -> Header:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, in_column_order, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, in_column_order, dtype = np.lib.format.read_array_header_2_0(file)
    if in_column_order and len(shape) > 1:
        raise ValueError("an array is in column order, in which none is written")
    return Header(shape, dtype)


@contextmanager
def _named_errors(path: Path) -> Generator[None]:
    """Turn the errors that a damaged file causes into one."""
    try:
        yield
    except _BROKEN as error:
        raise ArrayFileError(f"{path} is damaged: {error}") from error
