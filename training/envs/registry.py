"""Environments by name: those of the project, and those that a module of yours registers.

`my_robot:two_link` is the environment `two_link` once the module `my_robot` is imported, which registers it.
"""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from policy.spec import check_name
from training.envs import (
    ant,
    ant_ball,
    ant_maze,
    ant_push,
    arm,
    cheetah,
    humanoid,
    humanoid_maze,
    own,
    physics,
    point,
    pusher,
    reacher,
)
from training.envs.base import GoalEnv
from training.envs.errors import EnvError, UnknownNameError
from training.envs.facts import check_text, whole


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


def register(name: str, build: Callable[..., GoalEnv], *, episode_length: int) -> None:
    """Make an environment of your own known as `name`.

    Args:
        build: gives the environment for `(name, impl=...)`; called whenever one is needed.
        episode_length: control steps after which an episode ends, as the environment's facts say too.

    Raises:
        EnvError: the name is taken, `build` cannot be called, or `episode_length` is no number of steps.
        SpecError: the name is not plain, though it travels in file names, metric labels and logs.
    """
    check_text(name, field="name", where="register")
    check_name(name, field="environment")
    if not callable(build):
        raise EnvError(f"{name}: build must be a function of (name, impl=...) that gives a GoalEnv, not {build!r:.80}")
    episode_length = whole(episode_length, field="episode_length", where=name, usual=100)
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
    module, colon, _ = name.rpartition(":")
    if colon:
        own.import_module(module)


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
    module = name.rpartition(":")[0]
    usage = "one of your own is MODULE:NAME, see docs/your-own-robot.md"
    hint = f"{module} registers none of that name" if module else usage
    raise UnknownNameError("environment", bare, ENVIRONMENTS, hint=hint)


def make(name: str, *, impl: str = "jax") -> GoalEnv:
    """Build the environment called `name` on the MJX implementation `impl`. One of your own is also reset, to look at.

    Raises:
        UnknownNameError: there is no such environment or implementation.
        EnvError, SpecError: one of your own cannot be imported or built, or its start is not what its facts promise.
        LayoutError: a variant by distances that the maze is too short for.
        ImportError: `impl` is "warp" and warp-lang is not installed.
    """
    entry = find(name)
    physics.require_known(impl)
    if impl == "warp":
        physics.require_installed()
    bare = bare_name(name)
    if not entry.own:
        return entry.build(bare, impl=impl)
    env = own.build(entry.build, bare, impl=impl)
    _require_as_registered(env, bare, entry)
    own.require_sound(env)
    return env


def _require_as_registered(env: GoalEnv, name: str, entry: Entry) -> None:
    for field, registered in (("name", name), ("episode_length", entry.episode_length)):
        own = getattr(env.facts, field)
        if own != registered:
            raise EnvError(f"{name}: registered with {field} {registered!r}, its facts say {own!r}; give both the same")
