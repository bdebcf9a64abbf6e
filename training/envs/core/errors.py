"""Errors about environments that cannot be found, built or used, each a single line that names the environment."""

import difflib
import os
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Self

_LISTED = 8  # names in an error message
_LONGEST = 300  # characters of another library's message
_OURS = f"{Path(__file__).parents[2]}{os.sep}"
_STANDARD = sysconfig.get_path("stdlib")
_INSTALLED = tuple(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))


class UnknownNameError(ValueError):
    """A name that is not known. The message lists known names, the most similar first."""

    @classmethod
    def of(cls, kind: str, name: str, known: Iterable[str], *, hint: str = "") -> Self:
        """Return the error for `name`, which is none of the `known` names of a `kind`."""
        ordered = nearest_first(name, known)
        left_out = len(ordered) - _LISTED
        listed = ", ".join(ordered[:_LISTED]) + (f" and {left_out} more" if left_out > 0 else "")
        return cls(f"unknown {kind} {name!r}; known, nearest first: {listed}{hint and f'; {hint}'}")


class EnvError(ValueError):
    """An environment that cannot be registered, found or used. The message names the file and the element."""


def nearest_first(name: str, known: Iterable[str]) -> list[str]:
    """Return `known`, sorted by similarity to `name`."""
    return sorted(known, key=lambda candidate: -difflib.SequenceMatcher(a=name, b=candidate).ratio())


def one_line(error: BaseException) -> str:
    """Return an error of the user's code in one line: its type, its file and line number, and its message."""
    place = _place(error)
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}{place and f' at {place}'}: {' '.join(message.split()):.{_LONGEST}}"


def _place(error: BaseException) -> str:
    """Return file and line of the innermost frame of the user's code; if there is none, of a library that it calls."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    called = [frame for frame in frames if not frame.filename.startswith((_OURS, _STANDARD))]
    theirs = [frame for frame in called if not frame.filename.startswith(_INSTALLED)] or called
    return f"{theirs[-1].filename}:{theirs[-1].lineno}" if theirs else ""
