"""Environments by name: the built-in ones, and those that a module of yours registers.

`my_robot:two_link` is the environment `two_link` after an import of the module `my_robot`, which registers it. The
functions of this module work on `DEFAULT`, the registry that the whole program shares.
"""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from policy.spec import check_name
from training.envs.core import physics
from training.envs.core.env_spec import check_text, whole
from training.envs.core.errors import EnvError, UnknownNameError
from training.envs.core.goal_env import GoalEnv
from training.envs.custom import loading
from training.envs.locomotion import ant, ant_ball, ant_maze, ant_push, cheetah, humanoid, humanoid_maze, point_maze
from training.envs.manipulation import arm, pusher, reacher


class Entry(NamedTuple):
    """How to build an environment, and what is known before it is built."""

    build: Callable[..., GoalEnv]  # called as build(name, impl=...)
    episode_length: int  # control steps after which an episode ends
    custom: bool = False  # registered from outside the project, so `make` checks what it builds


class EnvRegistry:
    """A table of environments by name.

    Args:
        entries: environments by name.
        variants: families of environments, by a pattern that matches a whole name.
    """

    def __init__(self, entries: Mapping[str, Entry], *, variants: Mapping[re.Pattern[str], Entry]) -> None:
        self._entries = dict(entries)
        self._variants = dict(variants)

    @property
    def entries(self) -> Mapping[str, Entry]:
        """The registered environments by name, in the order of registration; variants are not among them."""
        return MappingProxyType(self._entries)

    def register(self, name: str, build: Callable[..., GoalEnv], *, episode_length: int) -> None:
        """Add an environment of your own under `name`.

        Args:
            build: returns the environment for `build(name, impl=...)`; called whenever one is needed.
            episode_length: control steps after which an episode ends; the environment's spec must say the same.

        Raises:
            EnvError: the name is taken, `build` is not callable, or `episode_length` is not a positive integer.
            SpecError: the name has characters that are not allowed in file names, metric labels and logs.
        """
        check_text(name, field="name", where="register")
        check_name(name, field="environment")
        if not callable(build):
            raise EnvError(
                f"{name}: build must be a function of (name, impl=...) that returns a GoalEnv, got {build!r:.80}"
            )
        episode_length = whole(episode_length, field="episode_length", where=name, usual=100)
        if name in self._entries or any(pattern.fullmatch(name) for pattern in self._variants):
            raise EnvError(f"an environment named {name!r} exists already; register yours under another name")
        self._entries[name] = Entry(build, episode_length, custom=True)

    def find(self, name: str) -> Entry:
        """Return the entry of `name`, which may be MODULE:NAME; the module is imported first.

        Raises:
            UnknownNameError: no such environment.
            EnvError, SpecError: no such module, or it cannot be imported.
        """
        import_module_of(name)
        bare = bare_name(name)
        if bare in self._entries:
            return self._entries[bare]
        for pattern, entry in self._variants.items():
            if pattern.fullmatch(bare):
                return entry
        module = name.rpartition(":")[0]
        usage = "for one of your own use MODULE:NAME, see docs/your-own-robot.md"
        hint = f"{module} does not register this name" if module else usage
        raise UnknownNameError.of("environment", bare, self._entries, hint=hint)

    def make(self, name: str, *, impl: str = "jax") -> GoalEnv:
        """Build the environment `name` on the MJX implementation `impl`. A custom one is also reset once, as a check.

        Args:
            impl: "jax" or "warp".

        Raises:
            UnknownNameError: no such environment or implementation.
            EnvError, SpecError: a custom one cannot be imported or built, or a reset does not fit its spec.
            NotImplementedError: the implementation does not support something that the model uses.
            ImportError: `impl` is "warp" and warp-lang is not installed.
        """
        entry = self.find(name)
        physics.require_known(impl)
        if impl == "warp":
            physics.require_installed()
        bare = bare_name(name)
        if not entry.custom:
            return entry.build(bare, impl=impl)
        env = loading.build(entry.build, bare, impl=impl)
        _require_as_registered(env, bare, entry)
        loading.require_sound(env)
        return env


def built_in() -> EnvRegistry:
    """Return a registry of the project's own environments."""
    entries = (
        {name: Entry(point_maze.PointMaze, length) for name, length in point_maze.EPISODE_LENGTHS.items()}
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
    variants = {ant_maze.DISTANCES: Entry(ant_maze.AntMaze, ant.EPISODE_LENGTH)}
    return EnvRegistry(entries, variants=variants)


DEFAULT = built_in()


def register(name: str, build: Callable[..., GoalEnv], *, episode_length: int) -> None:
    """Add an environment of your own to the default registry, see `EnvRegistry.register`."""
    DEFAULT.register(name, build, episode_length=episode_length)


def find(name: str) -> Entry:
    """Return the default registry's entry of `name`, see `EnvRegistry.find`."""
    return DEFAULT.find(name)


def make(name: str, *, impl: str = "jax") -> GoalEnv:
    """Build the environment `name` of the default registry, see `EnvRegistry.make`."""
    return DEFAULT.make(name, impl=impl)


def names() -> tuple[str, ...]:
    """Return the names in the default registry, in the order of registration."""
    return tuple(DEFAULT.entries)


def bare_name(name: str) -> str:
    """Return the environment's own name, without the module that registers it."""
    return name.rpartition(":")[2]


def import_module_of(name: str) -> None:
    """Import the module before the colon of `name`, if there is one, so that its environments are registered.

    The current folder is searched first, then PYTHONPATH.

    Raises:
        EnvError, SpecError: no such module, or it cannot be imported.
    """
    module, colon, _ = name.rpartition(":")
    if colon:
        loading.import_module(module)


def _require_as_registered(env: GoalEnv, name: str, entry: Entry) -> None:
    for field, registered in (("name", name), ("episode_length", entry.episode_length)):
        stated = getattr(env.spec, field)
        if stated != registered:
            raise EnvError(
                f"{name}: {field} is {registered!r} where it is registered and {stated!r} in its spec; use one value"
            )
