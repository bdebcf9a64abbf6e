"""EnvSpec: what is known of an environment before it runs, and how the numbers that a user states are checked."""

import dataclasses
import math
from typing import Any

import numpy as np

from policy.spec import SpecError, check_labels, check_name
from training.envs.core.errors import EnvError

_LARGEST = 2**31 - 1  # that fits in the 32 bits that counts have in compiled code


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnvSpec:
    """What is known of an environment before it runs. Names carry their unit in brackets.

    Raises:
        EnvError: a field is not what a policy's specification can hold, which is made of it only after training.
    """

    name: str
    state_names: tuple[str, ...]
    goal_names: tuple[str, ...]
    action_names: tuple[str, ...]
    success_radius: float  # distance to the goal that counts as reached, in the goal's unit
    episode_length: int  # control steps after which an episode ends
    source: str = ""  # the file that the robot is from, to name in errors; empty if there is none

    def __post_init__(self) -> None:
        where = ": ".join(filter(None, (self.source, str(self.name))))
        check_text(self.name, field="name", where=where)
        check_name(self.name, field="environment")
        for field in ("state_names", "goal_names", "action_names"):
            _check_names(field, getattr(self, field), where=where)
        radius = positive(self.success_radius, field="success_radius", where=where, usual=0.1)
        length = whole(self.episode_length, field="episode_length", where=where, usual=100)
        for field, plain in (("success_radius", radius), ("episode_length", length)):
            object.__setattr__(self, field, plain)  # numpy's own numbers could not be published


def check_text(text: Any, *, field: str, where: str) -> None:
    """Refuse what is no text.

    Raises:
        EnvError: naming `where` and the `field`.
    """
    if not isinstance(text, str):
        raise EnvError(f"{where}: {field} must be a text in quotes, not {text!r:.80}")


def positive(number: Any, *, field: str, where: str, usual: float, or_zero: bool = False) -> float:
    """`number` as a float, if it is finite and above zero; or zero, where that will do.

    Raises:
        EnvError: naming `where`, the `field` and a value that would work.
    """
    is_number = not isinstance(number, bool) and isinstance(number, int | float | np.integer | np.floating)
    if not (is_number and 0 <= number < math.inf and (number > 0 or or_zero)):
        kind = "a number of at least 0" if or_zero else "a number above 0"
        raise EnvError(f"{where}: {field} must be {kind}, not {number!r:.80}; try {usual:g}")
    return float(number)


def whole(number: Any, *, field: str, where: str, usual: int) -> int:
    """`number` as an int, if it is whole and at least 1.

    Raises:
        EnvError: naming `where`, the `field` and a value that would work.
    """
    is_whole = not isinstance(number, bool) and isinstance(number, int | np.integer)
    if not (is_whole and 1 <= number <= _LARGEST):
        raise EnvError(f"{where}: {field} must be a whole number above 0, not {number!r:.80}; try {usual}")
    return int(number)


def _check_names(field: str, names: Any, *, where: str) -> None:
    if not (isinstance(names, tuple) and all(isinstance(name, str) for name in names)):
        raise EnvError(f"{where}: {field} must be a tuple of names such as ('x [m]', 'y [m]'), not {names!r:.80}")
    try:
        check_labels(field, names)
    except SpecError as error:
        raise EnvError(f"{where}: {error}") from error
