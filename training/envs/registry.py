"""Environments by name."""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from training.envs import ant, ant_maze, arm, point
from training.envs.base import GoalEnv

IMPLEMENTATIONS = ("jax", "warp")


class Entry(NamedTuple):
    """How an environment is built, and what is known before."""

    build: Callable[..., GoalEnv]  # (name, impl=...)
    episode_length: int  # control steps after which an episode ends


ENVIRONMENTS: Mapping[str, Entry] = MappingProxyType(
    {name: Entry(point.PointMaze, length) for name, length in point.EPISODE_LENGTHS.items()}
    | {"ant": Entry(ant.Ant, ant.EPISODE_LENGTH)}
    | {name: Entry(ant_maze.AntMaze, ant.EPISODE_LENGTH) for name in ant_maze.NAMES}
    | {name: Entry(build, arm.EPISODE_LENGTH) for name, build in arm.TASKS.items()}
)
_PATTERNS: Mapping[re.Pattern[str], Entry] = MappingProxyType(
    {ant_maze.DISTANCES: Entry(ant_maze.AntMaze, ant.EPISODE_LENGTH)}
)


class UnknownNameError(ValueError):
    """A name that is not among the known ones; the message lists those, nearest first."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        super().__init__(f"unknown {kind} {name!r}; known, nearest first: {', '.join(nearest_first(name, known))}")


def find(name: str) -> Entry:
    """What is known of the environment called `name`: one of `ENVIRONMENTS`, or a variant by its distances.

    Raises:
        UnknownNameError: there is no such environment.
    """
    if name in ENVIRONMENTS:
        return ENVIRONMENTS[name]
    for pattern, entry in _PATTERNS.items():
        if pattern.fullmatch(name):
            return entry
    raise UnknownNameError("environment", name, ENVIRONMENTS)


def make(name: str, *, impl: str = "jax") -> GoalEnv:
    """Build the environment called `name` on the MJX implementation `impl`.

    Raises:
        UnknownNameError: there is no such environment or implementation.
        LayoutError: a variant by distances that the maze is too short for.
        ImportError: `impl` is "warp" and warp-lang is not installed.
    """
    entry = find(name)
    if impl not in IMPLEMENTATIONS:
        raise UnknownNameError("physics implementation", impl, IMPLEMENTATIONS)
    if impl == "warp":
        _require_warp()
    return entry.build(name, impl=impl)


def nearest_first(name: str, known: Iterable[str]) -> list[str]:
    """`known` in the order of likeness to `name`."""
    return sorted(known, key=lambda candidate: -difflib.SequenceMatcher(a=name, b=candidate).ratio())


def _require_warp() -> None:
    try:
        import warp  # noqa: F401  # pyright: ignore[reportMissingImports, reportUnusedImport]
    except ImportError as error:
        raise ImportError('the physics implementation "warp" needs warp-lang: pip install warp-lang==1.18.0') from error
