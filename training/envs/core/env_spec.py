"""EnvSpec: the names, success radius and episode length of an environment, and checks of such values."""

import dataclasses
import math
from typing import Any

import numpy as np

from policy.spec import SpecError, check_labels, check_name
from training.envs.core.errors import EnvError

_LARGEST = 2**31 - 1  # of 32-bit integers, which compiled code counts with


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnvSpec:
    """What is known of an environment before it runs. Names include their unit in brackets.

    Raises:
        EnvError: a field is not valid in a policy's specification, which is made from this one after training.
    """

    name: str
    state_names: tuple[str, ...]
    goal_names: tuple[str, ...]
    action_names: tuple[str, ...]
    success_radius: float  # distance to the goal that counts as reached, in the goal's unit
    episode_length: int  # control steps after which an episode ends
    source: str = ""  # the robot's file, for error messages; empty if there is none

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


def _check_names(field: str, names: Any, *, where: str) -> None:
    if not (isinstance(names, tuple) and all(isinstance(name, str) for name in names)):
        raise EnvError(f"{where}: {field} must be a tuple of names such as ('x [m]', 'y [m]'), got {names!r:.80}")
    try:
        check_labels(field, names)
    except SpecError as error:
        raise EnvError(f"{where}: {error}") from error
