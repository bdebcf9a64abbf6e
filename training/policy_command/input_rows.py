"""The states and goals that two policies are compared on: of probes, recorded by a server, or random."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from policy import plain_file
from policy.real_numbers import as_float32
from policy.spec import QUATERNION_SIZE, PolicySpec
from training.policy_command.result import UsageError

if TYPE_CHECKING:
    from policy.bundle import Probes

_ARRAYS = ("state", "goal")


@dataclasses.dataclass(frozen=True)
class InputRows:
    """States and goals, and where they come from."""

    source: str  # "probes", "recorded" or "random"
    about: str  # the same in a few words, for a heading
    state: np.ndarray  # [rows, state_dim] float32
    goal: np.ndarray  # [rows, goal_dim] float32


def of_probes(*probes: "Probes") -> InputRows:
    """Return the inputs of the probes of several policies, each row once."""
    rows = np.concatenate([np.concatenate([each.state, each.goal], axis=1) for each in probes])
    _, first = np.unique(rows, axis=0, return_index=True)
    state, goal = np.split(rows[np.sort(first)], [probes[0].state.shape[1]], axis=1)
    return InputRows("probes", "the probes of both", state, goal)


def recorded_rows(files: Sequence[Path], spec: PolicySpec) -> InputRows:
    """Return the rows of .npz files with the arrays `state` and `goal`, as `serving/run.py --log-rows` writes them.

    Raises:
        UsageError: a file cannot be read, or does not fit `spec`.
    """
    read = [_read(file, spec) for file in files]
    state, goal = (np.concatenate(arrays) for arrays in zip(*read, strict=True))
    return InputRows("recorded", f"the rows in {', '.join(map(str, files))}", state, goal)


def random_rows(count: int, specs: Sequence[PolicySpec], *, goals: np.ndarray, seed: int) -> InputRows:
    """Return random rows: each value is uniform, a state's in the range of training, a goal's in that of `goals`.

    The range of several policies is the smallest that contains them all. Values are independent of each other, so
    most states are combinations that training has not seen. Quaternions have length 1.

    Args:
        goals: [rows, goal_dim].

    Raises:
        UsageError: a policy does not know its range.
    """
    if not all(spec.seen_low for spec in specs):
        raise UsageError("--random needs the range of training, which a policy does not have; leave it out, or use 0")
    rng = np.random.default_rng(seed)
    low = np.min([spec.seen_low for spec in specs], axis=0)
    high = np.max([spec.seen_high for spec in specs], axis=0)
    state = rng.uniform(low, high, size=(count, len(low)))
    goal = rng.uniform(goals.min(axis=0), goals.max(axis=0), size=(count, goals.shape[1]))
    for array, starts in ((state, specs[0].state_quaternions), (goal, specs[0].goal_quaternions)):
        for start in starts:
            block = array[:, start : start + QUATERNION_SIZE]
            block /= np.maximum(np.linalg.norm(block, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    about = "random states in the range of training, with goals in the range of the probes' goals"
    return InputRows("random", about, state.astype(np.float32), goal.astype(np.float32))


def _read(file: Path, spec: PolicySpec) -> tuple[np.ndarray, np.ndarray]:
    """Return the states and the goals in `file`.

    Raises:
        UsageError: it cannot be read, or does not fit `spec`.
    """
    try:
        # Opened here, because numpy leaves a file open that turns out not to be an archive.
        with plain_file.opened(file) as opened, np.load(opened, allow_pickle=False) as stored:
            state, goal = (as_float32(stored[name]) for name in _ARRAYS)
    except OSError as error:
        raise UsageError(f"--rows {file} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # numpy raises zipfile, zlib, ValueError, KeyError ... for other files
        raise UsageError(f"--rows {file} must be an .npz file with the arrays state and goal: {error}") from error
    for name, array, size in (("state", state, spec.state_dim), ("goal", goal, spec.goal_dim)):
        if array.ndim != 2 or array.shape[1] != size or len(array) != len(state) or not len(state):
            raise UsageError(
                f"--rows {file}: {name} must have shape [rows, {size}], with one row or more and as many rows as the "
                f"other array, got {list(array.shape)}"
            )
        if not np.isfinite(array).all():
            raise UsageError(f"--rows {file}: {name} has NaN or infinity; leave out such rows")
    return state, goal
