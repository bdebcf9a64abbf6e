"""Check what a caller passes to `act` and `score`, and return it as arrays: for a served and for a local policy."""

from __future__ import annotations

import collections
import operator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kilolayer.errors import InvalidRequest

if TYPE_CHECKING:
    from typing_extensions import TypeGuard

MAX_UINT64 = 2**64 - 1
MAX_UINT32 = 2**32 - 1
_MAX_PRIORITY = 3
_MAX_ROBOT_ID_BYTES = 128  # in UTF-8

_SEQUENCES = (list, tuple, collections.deque)  # that numpy makes an array of
_SCALARS = frozenset({float, int, np.float32, np.float64})

Axes = tuple[int, ...]  # the axes that a response shares with its states: () for one state, (rows,) for a block


class ActArguments(NamedTuple):
    """The arguments of `act`, checked."""

    states: NDArray[np.float32]  # [S] or [rows, S], little-endian
    goals: NDArray[np.float32]  # [G] or [rows, G]
    sequence: int
    priority: int
    seed: int | None
    best_of: int | None

    @property
    def leading_axes(self) -> Axes:
        """The leading axes of the action."""
        return self.states.shape[:-1]

    @property
    def rows(self) -> int:
        """The number of rows."""
        return _rows(self.states)


class ScoreArguments(NamedTuple):
    """The arguments of `score`, checked."""

    states: NDArray[np.float32]  # [S] or [rows, S], little-endian
    actions: NDArray[np.float32]  # one [A] or [chunk, A] per state
    goals: NDArray[np.float32]  # [G] or [rows, G]
    sequence: int
    priority: int

    @property
    def leading_axes(self) -> Axes:
        """The axes of the energy."""
        return self.states.shape[:-1]

    @property
    def rows(self) -> int:
        """The number of rows."""
        return _rows(self.states)


def check_act(
    state: ArrayLike,
    goal: ArrayLike,
    *,
    sequence: int,
    seed: int | None = None,
    best_of: int | None = None,
    priority: int = 0,
) -> ActArguments:
    """Return the arguments for `state: [S]` or `[rows, S]` and `goal: [G]` or `[rows, G]`.

    Raises:
        InvalidRequest: an array is not numeric, is masked, is empty, or has more than two axes; the number of goals is
            neither one nor that of the states; a number is out of range; or `best_of` has no seed.
    """
    states, goals = _states_and_goals(state, goal)
    sequence = check_integer("sequence", sequence, most=MAX_UINT64)
    priority = check_integer("priority", priority, most=_MAX_PRIORITY)
    if seed is not None:
        seed = check_integer("seed", seed, most=MAX_UINT64)
    if best_of is not None:
        if seed is None:
            raise invalid(f"best_of={best_of} samples actions and requires a seed; pass seed=0, or a new one each tick")
        best_of = check_integer("best_of", best_of, least=1, most=MAX_UINT32)
    return ActArguments(states, goals, sequence, priority, seed, best_of)


def check_score(
    state: ArrayLike, action: ArrayLike, *, goal: ArrayLike, sequence: int, priority: int = 0
) -> ScoreArguments:
    """Return the arguments for `state` and `goal` as in `check_act` and one `action: [A]` or `[chunk, A]` per state.

    Raises:
        InvalidRequest: as `check_act`, or the number of actions is not that of the states.
    """
    states, goals = _states_and_goals(state, goal)
    actions = _array("action", action)
    if not actions.size:
        raise invalid(f"action must not be empty, got shape {list(actions.shape)}")
    leading_axes = states.shape[:-1]
    if actions.ndim - states.ndim not in (0, 1) or actions.shape[: len(leading_axes)] != leading_axes:
        raise invalid(
            f"action {list(actions.shape)} does not fit state {list(states.shape)}; pass one action [action_dim], or "
            "one chunk of actions [action_chunk, action_dim], per state"
        )
    sequence = check_integer("sequence", sequence, most=MAX_UINT64)
    priority = check_integer("priority", priority, most=_MAX_PRIORITY)
    return ScoreArguments(states, actions, goals, sequence, priority)


def check_name(field: str, name: object) -> str:
    """Return `name`, the value of a text field. InvalidRequest if it is not a string, or cannot be sent in UTF-8."""
    if not _is_text(name):
        raise invalid(f"{field} must be a string without lone surrogates, got {name!r:.200}")
    return name


def _is_text(value: object) -> TypeGuard[str]:
    """Return whether `value` is a string that UTF-8 can encode: Python's may have lone surrogates, which it cannot."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    else:
        return True


def check_robot_id(robot_id: object) -> str:
    """Return `robot_id`. ValueError if it is not a string in UTF-8, or has more than 128 bytes."""
    if not _is_text(robot_id) or len(robot_id.encode()) > _MAX_ROBOT_ID_BYTES:
        raise ValueError(
            f"robot_id must be a string of at most {_MAX_ROBOT_ID_BYTES} bytes in UTF-8, got {robot_id!r:.200}"
        )
    return robot_id


def is_masked(values: object) -> bool:
    """Return whether `values` is a masked array, or a sequence that has one: `np.asarray` would drop the mask."""
    if isinstance(values, np.ma.MaskedArray):
        return True
    if not isinstance(values, _SEQUENCES):
        return False
    kinds = set(map(type, values))  # a look at the types is several times as fast as one at each value
    if kinds <= _SCALARS or not any(issubclass(kind, (*_SEQUENCES, np.ma.MaskedArray)) for kind in kinds):
        return False
    return any(map(is_masked, values))


def _array(name: str, values: ArrayLike) -> NDArray[np.float32]:
    """Return `values` as a little-endian float32 array."""
    if is_masked(values):
        raise invalid(f"{name} must not be a masked array, because a mask cannot be sent; pass {name}.filled(value)")
    try:
        with np.errstate(over="ignore"):  # too large values become infinite; the server reports their row
            return np.asarray(values).astype("<f4", casting="same_kind", copy=False)
    except (TypeError, ValueError) as error:
        raise invalid(f"{name} must be an array of numbers: {error}") from error


def _block(name: str, values: ArrayLike) -> NDArray[np.float32]:
    """Return `values` as a little-endian float32 array of one or two axes, not empty."""
    block = _array(name, values)
    if block.ndim not in (1, 2) or not block.size:
        raise invalid(
            f"{name} must be one row [{name}_dim] or a block [rows, {name}_dim], got shape {list(block.shape)}"
        )
    return block


def check_integer(name: str, value: int, *, most: int, least: int = 0) -> int:
    """Return `value`, an int or a numpy integer, as an int in [least, most]."""
    try:
        number = least - 1 if is_masked(value) else operator.index(value)
    except TypeError:
        number = least - 1
    if not least <= number <= most:
        raise invalid(f"{name} must be an integer from {least} to {most}, got {value!r}")
    return number


def invalid(problem: str) -> InvalidRequest:
    """Return the exception for arguments that are refused before anything is sent or computed."""
    return InvalidRequest(f"Not sent: {problem}.", status="INVALID_ARGUMENT")


def _states_and_goals(state: ArrayLike, goal: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    states, goals = _block("state", state), _block("goal", goal)
    if goals.ndim > states.ndim or (goals.ndim == 2 and len(goals) != len(states)):
        raise invalid(
            f"goal {list(goals.shape)} does not fit state {list(states.shape)}; "
            "pass one goal per state, or a single goal [goal_dim] for all of them"
        )
    return states, goals


def _rows(states: NDArray[np.float32]) -> int:
    return len(states) if states.ndim == 2 else 1
