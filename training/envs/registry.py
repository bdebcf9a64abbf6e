"""Environments by name: those of the project, and those that a module of yours registers.

`my_robot:two_link` is the environment `two_link` once the module `my_robot` is imported, which registers it.
"""

import difflib
import importlib
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import jax
import numpy as np

from policy.spec import SpecError, check_name
from training.envs import (
    ant,
    ant_ball,
    ant_maze,
    ant_push,
    arm,
    cheetah,
    humanoid,
    humanoid_maze,
    physics,
    point,
    pusher,
    reacher,
)
from training.envs.base import GoalEnv

IMPLEMENTATIONS = ("jax", "warp")
_LISTED = 8  # names that an error lists


class Entry(NamedTuple):
    """How an environment is built, and what is known before."""

    build: Callable[..., GoalEnv]  # (name, impl=...)
    episode_length: int  # control steps after which an episode ends
    own: bool = False  # registered from outside the project, whose tests know nothing of it


_entries = (
    {name: Entry(point.PointMaze, length) for name, length in point.EPISODE_LENGTHS.items()}
    | {"ant": Entry(ant.Ant, ant.EPISODE_LENGTH)}
    | {name: Entry(ant_maze.AntMaze, ant.EPISODE_LENGTH) for name in ant_maze.NAMES}
    | {
        "ant_ball": Entry(ant_ball.AntBall, ant.EPISODE_LENGTH),
        "ant_ball_maze": Entry(ant_ball.AntBallMaze, ant.EPISODE_LENGTH),
        "ant_push": Entry(ant_push.AntPush, ant.EPISODE_LENGTH),
    }
    | {"humanoid": Entry(humanoid.Humanoid, humanoid.EPISODE_LENGTH)}
    | {name: Entry(humanoid_maze.HumanoidMaze, humanoid.EPISODE_LENGTH) for name in humanoid_maze.NAMES}
    | {name: Entry(build, arm.EPISODE_LENGTH) for name, build in arm.TASKS.items()}
    | {"reacher": Entry(reacher.Reacher, reacher.EPISODE_LENGTH)}
    | {name: Entry(pusher.Pusher, pusher.EPISODE_LENGTH) for name in pusher.NAMES}
    | {"cheetah": Entry(cheetah.Cheetah, cheetah.EPISODE_LENGTH)}
)
ENVIRONMENTS: Mapping[str, Entry] = MappingProxyType(_entries)
_PATTERNS: Mapping[re.Pattern[str], Entry] = MappingProxyType(
    {ant_maze.DISTANCES: Entry(ant_maze.AntMaze, ant.EPISODE_LENGTH)}
)


class UnknownNameError(ValueError):
    """A name that is not among the known ones; the message lists those, nearest first, or the nearest of many."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, hint: str = "") -> None:
        ordered = nearest_first(name, known)
        left_out = len(ordered) - _LISTED
        listed = ", ".join(ordered[:_LISTED]) + (f" and {left_out} more" if left_out > 0 else "")
        super().__init__(f"unknown {kind} {name!r}; known, nearest first: {listed}{hint and f'; {hint}'}")


class EnvError(ValueError):
    """An environment that cannot be registered, found or used; the message names the file and the element."""


def register(name: str, build: Callable[..., GoalEnv], *, episode_length: int) -> None:
    """Make an environment of your own known as `name`.

    Args:
        build: gives the environment for `(name, impl=...)`; called whenever one is needed.
        episode_length: control steps after which an episode ends, as the environment's facts say too.

    Raises:
        EnvError: the name is taken.
        SpecError: the name is not plain, though it travels in file names, metric labels and logs.
    """
    check_name(name, field="environment")
    if name in _entries or any(pattern.fullmatch(name) for pattern in _PATTERNS):
        raise EnvError(f"there is an environment {name!r} already; register yours under another name")
    _entries[name] = Entry(build, episode_length, own=True)


def bare_name(name: str) -> str:
    """The environment's own name, without the module that registers it."""
    return name.rpartition(":")[2]


def import_module_of(name: str) -> None:
    """Import the module before the colon of `name`, if there is one: what it registers is known from then on.

    It is looked for in the current folder first, then on PYTHONPATH.

    Raises:
        EnvError, SpecError: there is no such module, or it cannot be imported.
    """
    module = name.rpartition(":")[0]
    if not module:
        return
    here = str(Path.cwd())
    if sys.path[0] != here:
        sys.path.insert(0, here)  # as for a script of yours; `python training/run.py` puts training/ there instead
    try:
        importlib.import_module(module)
    except (EnvError, SpecError):
        raise
    except (Exception, SystemExit) as error:  # whatever the module does when it is imported
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise EnvError(
                f"there is no module {module!r} in {here} or on PYTHONPATH; for a file my_robot.py, say my_robot:NAME "
                "in its folder, or put its folder on PYTHONPATH"
            ) from error
        at = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")]
        place = f" at {at[-1].filename}:{at[-1].lineno}" if at[1:] else ""
        raise EnvError(f"{module} cannot be imported: {type(error).__name__}{place}: {error}") from error


def find(name: str) -> Entry:
    """What is known of the environment called `name`: one of `ENVIRONMENTS`, or a variant by its distances.

    Before a colon may stand the module that registers it, which is imported.

    Raises:
        UnknownNameError: there is no such environment.
        EnvError, SpecError: there is no such module, or it cannot be imported.
    """
    import_module_of(name)
    bare = bare_name(name)
    if bare in ENVIRONMENTS:
        return ENVIRONMENTS[bare]
    for pattern, entry in _PATTERNS.items():
        if pattern.fullmatch(bare):
            return entry
    hint = "one of your own is MODULE:NAME, see docs/your-own-robot.md"
    raise UnknownNameError("environment", bare, ENVIRONMENTS, hint=hint)


def make(name: str, *, impl: str = "jax") -> GoalEnv:
    """Build the environment called `name` on the MJX implementation `impl`. One of your own is also reset, to look at.

    Raises:
        UnknownNameError: there is no such environment or implementation.
        EnvError, SpecError: one of your own cannot be imported, or its start is not what its facts promise.
        LayoutError: a variant by distances that the maze is too short for.
        ImportError: `impl` is "warp" and warp-lang is not installed.
    """
    entry = find(name)
    if impl not in IMPLEMENTATIONS:
        raise UnknownNameError("physics implementation", impl, IMPLEMENTATIONS)
    if impl == "warp":
        physics.require_installed()
    env = entry.build(bare_name(name), impl=impl)
    if entry.own:
        _require_as_registered(env, bare_name(name), entry)
        _require_numbers(env)
    return env


def nearest_first(name: str, known: Iterable[str]) -> list[str]:
    """`known` in the order of likeness to `name`."""
    return sorted(known, key=lambda candidate: -difflib.SequenceMatcher(a=name, b=candidate).ratio())


def _require_as_registered(env: GoalEnv, name: str, entry: Entry) -> None:
    for field, registered in (("name", name), ("episode_length", entry.episode_length)):
        own = getattr(env.facts, field)
        if own != registered:
            raise EnvError(f"{name}: registered with {field} {registered!r}, its facts say {own!r}; give both the same")


def _require_numbers(env: GoalEnv) -> None:
    """Look at one reset: compiled code cannot say that its numbers are none, or which."""
    info = jax.jit(env.reset)(jax.random.key(0)).info
    where = ": ".join(filter(None, (env.facts.source, env.facts.name)))
    for kind, names in (("state", env.facts.state_names), ("goal", env.facts.goal_names)):
        numbers = np.asarray(info[kind])
        if numbers.shape != (len(names),):
            raise EnvError(f"{where}: a {kind} has the shape {list(numbers.shape)}, {kind}_names holds {len(names)}")
        broken = [f"{name} is {number}" for name, number in zip(names, numbers, strict=True) if not np.isfinite(number)]
        if broken:
            raise EnvError(f"{where}: the {kind} at a reset holds no number: {', '.join(broken)}; look at its start")
