"""EnvSpec: what is known of an environment before it runs, such as names and episode length; checks of such values."""

import dataclasses
import math
from typing import Any

import numpy as np

from policy.spec import (
    ACTION_MEANINGS,
    ACTION_RANGE,
    ACTUATOR_KINDS,
    SpecError,
    check_labels,
    check_name,
    check_quaternions,
)
from training.envs.core.errors import EnvError

_LARGEST = 2**31 - 1  # of 32-bit integers, which compiled code counts with
_ABOVE_0 = math.ulp(0.0)  # the smallest positive number


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnvSpec:
    """What is known of an environment before it runs. Names include their unit in brackets.

    A policy's specification takes over all of it. `PolicySpec` explains the facts of actions, which are one entry per
    action name, or empty.

    Args:
        success_radius: distance to the goal that counts as reached, in the goal's unit.
        episode_length: control steps after which an episode ends.
        source: the robot's file, for error messages; empty if there is none.
        actuator_kind: empty: read from the model, see `GoalEnv.actuator_kind`.
        rest_action: in [-1, 1]; empty: read from the model, see `GoalEnv.rest_action`.
        action_meaning: absolute or increment; empty: absolute.
        max_action_change: above 0, at most 2; empty: no limit.
        state_quaternions: index in the state of the first value (w) of each quaternion (w, x, y, z).
        goal_quaternions: the same in the goal.

    Raises:
        EnvError: a field is not valid in a policy's specification, which is made from this one after training.
    """

    name: str
    state_names: tuple[str, ...]
    goal_names: tuple[str, ...]
    action_names: tuple[str, ...]
    success_radius: float
    episode_length: int
    source: str = ""
    actuator_kind: tuple[str, ...] = ()
    rest_action: tuple[float, ...] = ()
    action_meaning: tuple[str, ...] = ()
    max_action_change: tuple[float, ...] = ()
    state_quaternions: tuple[int, ...] = ()
    goal_quaternions: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        where = ": ".join(filter(None, (self.source, str(self.name))))
        check_text(self.name, field="name", where=where)
        check_name(self.name, field="environment")
        for field in ("state_names", "goal_names", "action_names"):
            _check_names(field, getattr(self, field), where=where)
        radius = positive(self.success_radius, field="success_radius", where=where, usual=0.1)
        length = whole(self.episode_length, field="episode_length", where=where, usual=100)
        for field, plain in (("success_radius", radius), ("episode_length", length)):
            object.__setattr__(self, field, plain)  # numpy's numbers are not JSON
        self._check_actions(where)
        for field, names in (("state_quaternions", self.state_names), ("goal_quaternions", self.goal_names)):
            starts = tuple(_entries(field, getattr(self, field), int | np.integer, kind="indices", where=where))
            starts = tuple(int(start) for start in starts)
            try:
                check_quaternions(field, starts, dim=len(names))
            except SpecError as error:
                raise EnvError(f"{where}: {error}") from error
            object.__setattr__(self, field, starts)

    def _check_actions(self, where: str) -> None:
        for field, known in (("actuator_kind", ACTUATOR_KINDS), ("action_meaning", ACTION_MEANINGS)):
            words = self._per_action(field, str, kind="words", where=where)
            for name, word in zip(self.action_names, words, strict=False):
                if word not in known:
                    raise EnvError(f"{where}: {field} of {name!r} must be one of {', '.join(known)}, got {word!r:.80}")
            object.__setattr__(self, field, words)
        numbers = int | float | np.integer | np.floating
        for field, low, high, allowed in (
            ("rest_action", -1.0, 1.0, "from -1 to 1"),
            ("max_action_change", _ABOVE_0, ACTION_RANGE, f"above 0 and at most {ACTION_RANGE:g}"),
        ):
            values = self._per_action(field, numbers, kind="numbers", where=where)
            for name, value in zip(self.action_names, values, strict=False):
                if not low <= value <= high:
                    raise EnvError(f"{where}: {field} of {name!r} must be {allowed}, got {value}")
            object.__setattr__(self, field, tuple(float(value) for value in values))

    def _per_action(self, field: str, item: Any, *, kind: str, where: str) -> tuple[Any, ...]:
        values = _entries(field, getattr(self, field), item, kind=kind, where=where)
        if values and len(values) != len(self.action_names):
            raise EnvError(
                f"{where}: {field} must have one entry for each of {', '.join(self.action_names)}, or none, got "
                f"{values!r:.80}"
            )
        return values


def check_text(text: Any, *, field: str, where: str) -> None:
    """Refuse anything but a string.

    Raises:
        EnvError: the message names `where` and `field`.
    """
    if not isinstance(text, str):
        raise EnvError(f"{where}: {field} must be a string, got {text!r:.80}")


def positive(number: Any, *, field: str, where: str, usual: float, or_zero: bool = False) -> float:
    """Return `number` as a float if it is finite and above 0, or with `or_zero` also if it is 0.

    Raises:
        EnvError: the message names `where`, `field` and a value that would work.
    """
    is_number = not isinstance(number, bool) and isinstance(number, int | float | np.integer | np.floating)
    if not (is_number and 0 <= number < math.inf and (number > 0 or or_zero)):
        kind = "a number, 0 or more" if or_zero else "a number above 0"
        raise EnvError(f"{where}: {field} must be {kind}, got {number!r:.80}; try {usual:g}")
    return float(number)


def whole(number: Any, *, field: str, where: str, usual: int) -> int:
    """Return `number` as an int if it is a positive integer.

    Raises:
        EnvError: the message names `where`, `field` and a value that would work.
    """
    is_whole = not isinstance(number, bool) and isinstance(number, int | np.integer)
    if not (is_whole and 1 <= number <= _LARGEST):
        raise EnvError(f"{where}: {field} must be an integer above 0, got {number!r:.80}; try {usual}")
    return int(number)


def _entries(field: str, values: Any, item: Any, *, kind: str, where: str) -> tuple[Any, ...]:
    """Return `values` if it is a tuple of entries of the type `item`; a bool is not a number."""
    if not (
        isinstance(values, tuple) and all(isinstance(each, item) and not isinstance(each, bool) for each in values)
    ):
        raise EnvError(f"{where}: {field} must be a tuple of {kind}, got {values!r:.80}")
    return values


def _check_names(field: str, names: Any, *, where: str) -> None:
    if not (isinstance(names, tuple) and all(isinstance(name, str) for name in names)):
        raise EnvError(f"{where}: {field} must be a tuple of names such as ('x [m]', 'y [m]'), got {names!r:.80}")
    try:
        check_labels(field, names)
    except SpecError as error:
        raise EnvError(f"{where}: {error}") from error
