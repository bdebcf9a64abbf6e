"""Environments by name."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from training.envs import ant, point
from training.envs.base import GoalEnv

ENVIRONMENTS: Mapping[str, Callable[..., GoalEnv]] = MappingProxyType(
    dict.fromkeys(point.EPISODE_LENGTHS, point.PointMaze) | {"ant": ant.Ant}
)
EPISODE_LENGTHS: Mapping[str, int] = MappingProxyType({**point.EPISODE_LENGTHS, "ant": ant.EPISODE_LENGTH})
IMPLEMENTATIONS = ("jax", "warp")


class UnknownNameError(ValueError):
    """A name that is not among the known ones; the message lists those, nearest first."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        super().__init__(f"unknown {kind} {name!r}; known, nearest first: {', '.join(nearest_first(name, known))}")


def make(name: str, *, impl: str = "jax") -> GoalEnv:
    """Build the environment called `name` on the MJX implementation `impl`.

    Raises:
        UnknownNameError: there is no such environment or implementation.
        ImportError: `impl` is "warp" and warp-lang is not installed.
    """
    if name not in ENVIRONMENTS:
        raise UnknownNameError("environment", name, ENVIRONMENTS)
    if impl not in IMPLEMENTATIONS:
        raise UnknownNameError("physics implementation", impl, IMPLEMENTATIONS)
    if impl == "warp":
        _require_warp()
    return ENVIRONMENTS[name](name, impl=impl)


def nearest_first(name: str, known: Iterable[str]) -> list[str]:
    """`known` in the order of likeness to `name`."""
    return sorted(known, key=lambda candidate: -difflib.SequenceMatcher(a=name, b=candidate).ratio())


def _require_warp() -> None:
    try:
        import warp  # noqa: F401  # pyright: ignore[reportMissingImports, reportUnusedImport]
    except ImportError as error:
        raise ImportError('the physics implementation "warp" needs warp-lang: pip install warp-lang==1.18.0') from error
