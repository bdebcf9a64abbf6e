"""What is told of an environment that cannot be found, built or used: one line that names it."""

import difflib
import os
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path

_LISTED = 8  # names that an error lists
_LONGEST = 300  # characters that are told of what another library says
_OURS = f"{Path(__file__).parents[2]}{os.sep}"
_STANDARD = sysconfig.get_path("stdlib")
_INSTALLED = tuple(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))


class UnknownNameError(ValueError):
    """A name that is not among the known ones; the message lists those, nearest first, or the nearest of many."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, hint: str = "") -> None:
        ordered = nearest_first(name, known)
        left_out = len(ordered) - _LISTED
        listed = ", ".join(ordered[:_LISTED]) + (f" and {left_out} more" if left_out > 0 else "")
        super().__init__(f"unknown {kind} {name!r}; known, nearest first: {listed}{hint and f'; {hint}'}")


class EnvError(ValueError):
    """An environment that cannot be registered, found or used; the message names the file and the element."""


def nearest_first(name: str, known: Iterable[str]) -> list[str]:
    """`known` in the order of likeness to `name`."""
    return sorted(known, key=lambda candidate: -difflib.SequenceMatcher(a=name, b=candidate).ratio())


def told(error: BaseException) -> str:
    """An error from code of the user's in one line: its type, the file and the line there, what it says."""
    place = _place(error)
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}{place and f' at {place}'}: {' '.join(said.split()):.{_LONGEST}}"


def _place(error: BaseException) -> str:
    """The file and the line that an error is from: the innermost of the user's, if any, not of what it calls."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    called = [frame for frame in frames if not frame.filename.startswith((_OURS, _STANDARD))]
    theirs = [frame for frame in called if not frame.filename.startswith(_INSTALLED)] or called
    return f"{theirs[-1].filename}:{theirs[-1].lineno}" if theirs else ""
