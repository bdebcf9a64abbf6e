"""The files of sampled rows: what one holds, its name, and the limit of their folder.

A file is an npz archive that `numpy.load(path, allow_pickle=False)` reads. It holds rows of one version of one policy,
in the order in which they were answered:

    schema     int64 scalar      1, the number of this schema
    policy     string scalar     the policy that gave the actions
    version    string scalar     its version
    state      [rows, state_dim] float32
    goal       [rows, goal_dim] float32
    action     [rows, action_chunk, action_dim] float32, in [-1, 1]
    robot_id   [rows] string     empty if the request had none
    time_s     [rows] float64    Unix time at which the row was answered, in seconds

A name is `rows-<time in nanoseconds>-<process>-<number>.npz`, so names in alphabetical order are in order of time. A
file gets its name once it is complete; until then its name ends with `.tmp`.
"""

import contextlib
import os
import re
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from serving.errors import StartupError

SCHEMA = 1
_MAX_FILES = 10_000  # in the folder, which is listed before each new file
_MAX_FILE_BYTES = 2**20
_HEADER_BYTES = 4096  # of a file with a single row, about 2,600 of them used
_CHARACTER_BYTES = 4  # of a numpy string
_TIME_BYTES = 8
_NAME = re.compile(r"rows-\d{19}-(\d{1,9})-\d{6,}\.npz(\.tmp)?")


class AnsweredRows(NamedTuple):
    """Rows of one request."""

    policy: str
    version: str
    state: np.ndarray  # [rows, state_dim] float32
    goal: np.ndarray  # [rows, goal_dim] float32
    action: np.ndarray  # [rows, action_chunk, action_dim] float32
    robot_id: str
    time_s: float

    @property
    def nbytes(self) -> int:
        """The bytes of the arrays."""
        return self.state.nbytes + self.goal.nbytes + self.action.nbytes

    def part(self, start: int, stop: int) -> "AnsweredRows":
        """Return the rows from `start` to before `stop`."""
        return self._replace(state=self.state[start:stop], goal=self.goal[start:stop], action=self.action[start:stop])


class FileRows:
    """Rows of one version of one policy, collected for one file."""

    def __init__(self, since_s: float) -> None:
        self.since_s = since_s
        self.requests: list[AnsweredRows] = []
        self.count = 0
        self._nbytes = 0
        self._longest = 1  # numpy stores at least one character

    def append(self, rows: AnsweredRows) -> None:
        """Add `rows`."""
        self.requests.append(rows)
        self.count += len(rows.state)
        self._nbytes += rows.nbytes
        self._longest = max(self._longest, len(rows.robot_id))

    def bytes_with(self, rows: AnsweredRows) -> int:
        """Return the bytes of a file with `rows` in addition, without its headers."""
        longest = max(self._longest, len(rows.robot_id))  # numpy gives each string of an array the same size
        return self._nbytes + rows.nbytes + (self.count + len(rows.state)) * (_CHARACTER_BYTES * longest + _TIME_BYTES)


class RowFolder:
    """A folder of such files, which several processes may share.

    Args:
        path: the folder; made if it does not exist.
        max_bytes: of all files in it; the oldest are deleted for new ones.
        writers: processes that share the folder and the limit.
        wall_clock_ns: Unix time in nanoseconds.

    Raises:
        StartupError: no file can be made in it.
    """

    def __init__(
        self, path: Path, *, max_bytes: int, writers: int = 1, wall_clock_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self.path = path
        self.max_file_bytes = min(_MAX_FILE_BYTES, max_bytes // (8 * writers))
        """Most bytes of rows in one file, if a row is not larger."""
        # Each process may at one time write a file that the others do not see yet, and hold one beside it.
        self._kept_bytes = max_bytes - 2 * writers * (self.max_file_bytes + _HEADER_BYTES)
        self._wall_clock_ns = wall_clock_ns
        self._number = 0
        check_folder(path)
        with _refusing(path):
            self._sweep()

    def write(self, rows: Sequence[AnsweredRows]) -> None:
        """Write one file with `rows`, all of one version of one policy. Delete the oldest files to make room for it.

        Raises:
            OSError: it cannot be written; nothing is left of it.
        """
        path = self.path / self._next_name()
        temporary = path.with_name(path.name + ".tmp")
        try:
            with temporary.open("xb") as file:
                np.savez(file, allow_pickle=False, **_arrays(rows))
            self._make_room(temporary.stat().st_size)
            temporary.rename(path)
        except BaseException:
            with contextlib.suppress(OSError):  # the first error says more
                temporary.unlink(missing_ok=True)
            raise

    def _next_name(self) -> str:
        self._number += 1
        return f"rows-{self._wall_clock_ns():019d}-{os.getpid()}-{self._number:06d}.npz"

    def _make_room(self, size: int) -> None:
        """Delete the oldest files until one of `size` bytes fits in."""
        files = sorted(self._complete_files())
        total = size + sum(its_size for _, its_size in files)
        for index, (name, its_size) in enumerate(files):
            if total <= self._kept_bytes and len(files) - index < _MAX_FILES:
                return
            (self.path / name).unlink(missing_ok=True)  # another process may have been faster
            total -= its_size

    def _complete_files(self) -> list[tuple[str, int]]:
        """Return names and sizes."""
        found = []
        with os.scandir(self.path) as entries:
            for entry in entries:
                if (name := _NAME.fullmatch(entry.name)) and not name[2] and entry.is_file(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):  # another process has just deleted it
                        found.append((entry.name, entry.stat().st_size))
        return found

    def _sweep(self) -> None:
        """Remove what processes that have ended left incomplete."""
        for path in self.path.iterdir():
            name = _NAME.fullmatch(path.name)
            if name and name[2] and not _is_another_process(int(name[1])):
                path.unlink(missing_ok=True)


def check_folder(path: Path) -> None:
    """Make the folder, if it does not exist, and a file in it, which is removed.

    Raises:
        StartupError: that is not possible.
    """
    trial = path / f"rows-{0:019d}-{os.getpid()}-{0:06d}.npz.tmp"
    with _refusing(path):
        path.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink()


@contextlib.contextmanager
def _refusing(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise StartupError(
            f"cannot write sampled rows to {path} ({error.strerror}); choose a folder that this user may write to with"
            " --log-rows"
        ) from error


def _arrays(rows: Sequence[AnsweredRows]) -> dict[str, np.ndarray]:
    counts = [len(each.state) for each in rows]
    return {
        "schema": np.array(SCHEMA, np.int64),
        "policy": np.array(rows[0].policy),
        "version": np.array(rows[0].version),
        "state": np.concatenate([each.state for each in rows]),
        "goal": np.concatenate([each.goal for each in rows]),
        "action": np.concatenate([each.action for each in rows]),
        "robot_id": np.repeat([each.robot_id for each in rows], counts),
        "time_s": np.repeat([each.time_s for each in rows], counts),
    }


def _is_another_process(pid: int) -> bool:
    """Return whether a process other than this one has this number now."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # of another user
    return True
