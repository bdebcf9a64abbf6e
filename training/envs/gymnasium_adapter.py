"""Gymnasium interface: importing this module registers every environment, as "kilolayer/point_u_maze-v0" and so on.

Observations are dictionaries as in other goal environments: `state`, `achieved_goal`, `desired_goal`. The physics is
that of training, MJX, compiled at the first step. Environments of one name share the compiled program.
"""

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from brax.envs.base import State

from training.envs import registry
from training.envs.core.goal_env import GoalEnv
from training.envs.rendering.camera import Camera, require_size

Observation = dict[str, np.ndarray]


class GymnasiumEnv(gymnasium.Env[Observation, np.ndarray]):
    """One robot with one goal, with Gymnasium's interface. Actions outside [-1, 1] are clipped.

    Args:
        name: the environment's name in the registry.
        impl: the MJX implementation, "jax" or "warp".
        render_mode: "rgb_array" for pictures.
        width: of a picture, in pixels.
        height: of a picture, in pixels.

    Raises:
        UnknownNameError: no such environment or implementation.
        ValueError: no such render mode, or a picture size that the model does not allow.
        RuntimeError: this process was forked from one in which JAX runs.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012  as Gymnasium declares it

    def __init__(
        self, name: str, *, impl: str = "jax", render_mode: str | None = None, width: int = 640, height: int = 480
    ) -> None:
        self._made_with = {"name": name, "impl": impl}
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f'render_mode must be "rgb_array" or None, got {render_mode!r}')
        self._compile()
        if render_mode is not None:
            require_size(self.env, width=width, height=height)
        self.metadata = {**self.metadata, "render_fps": 1 / self.env.control_period_s}
        self.render_mode = render_mode
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (self.env.action_size,), np.float32)
        goal_size = self.env.goal_size
        sizes = {"state": self.env.state_size, "achieved_goal": goal_size, "desired_goal": goal_size}
        # the ranges of states and goals are not known
        boxes = ((part, gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)) for part, size in sizes.items())
        self.observation_space: Any = gymnasium.spaces.Dict(tuple(boxes))
        self._picture_size = {"width": width, "height": height}
        self._camera: Camera | None = None
        self._state: State | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Draw a new start and a new goal, as determined by the last `seed`.

        Args:
            seed: of all random numbers from now on.
            options: `goal`: [goal_dim], the goal instead of a drawn one. `start`: the start instead of a drawn one, a
                dictionary of `qpos`: [nq] and, unless the robot starts at rest, `qvel`: [nv]. What is drawn at later
                resets does not depend on them.

        Raises:
            ValueError: another option, or a value with a wrong shape or numbers that are not finite.
        """
        given = _Given.from_options(self.env, options or {})
        super().reset(seed=seed, options=options)
        self._state = self._compiled.reset(jax.random.key(int(self.np_random.integers(2**31))))
        if given.any:
            physics: Any = self._state.pipeline_state
            drawn = (physics.qpos, physics.qvel, self._state.info["goal"])
            chosen = (old if new is None else jnp.asarray(new) for old, new in zip(drawn, given, strict=True))
            self._state = self._compiled.start_at(*chosen)
        return self._observe(self._state)

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but the compiled functions and the camera, for a copy or another process."""
        kept = {name: value for name, value in vars(self).items() if name not in {"env", "_compiled"}}
        return kept | {"_camera": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Build the environment again; the copy goes on where the original was.

        Raises:
            UnknownNameError: no module of this process registers the environment; use MODULE:NAME.
            RuntimeError: this process was forked from one in which JAX runs.
        """
        vars(self).update(state)
        self._compile()

    def _compile(self) -> None:
        """Take the environment and its functions from the cache of this process.

        Raises:
            RuntimeError: this process was forked from one in which JAX runs.
        """
        _require_no_fork()
        self._compiled = _compiled(**self._made_with)
        self.env = self._compiled.env

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Hold `action: [action_dim]` for one control period.

        In `info`, `success` and `is_success` say whether the robot is within the success radius after this step.

        Raises:
            ValueError: the action has a wrong shape, or a value that is not finite.
            gymnasium.error.ResetNeeded: `reset` was not called before.
        """
        if self._state is None:
            raise gymnasium.error.ResetNeeded("call reset before step")
        self._state = self._compiled.step(self._state, jnp.asarray(self._checked(action)))
        observation, info = self._observe(self._state)
        return observation, float(self._state.reward), bool(self._state.done), False, info

    def compute_reward(self, achieved_goal: np.ndarray, desired_goal: np.ndarray, info: object) -> np.ndarray:
        """Return the reward of rows of goals, both [..., goal_dim]: 1 within the success radius, else 0, [...] float32.

        `info` is ignored; replay buffers pass it.

        Raises:
            ValueError: a row is not a goal of this environment, for example a whole state.
        """
        del info
        for name, goals in (("achieved_goal", achieved_goal), ("desired_goal", desired_goal)):
            if np.shape(goals)[-1:] != (self.env.goal_size,):
                size = self.env.goal_size
                raise ValueError(f"{name} must have shape [..., {size}], got {list(np.shape(goals))}")
        distance = self.env.goal_distance(jnp.asarray(achieved_goal), jnp.asarray(desired_goal))
        return np.array(distance < self.env.spec.success_radius, np.float32)

    def render(self) -> np.ndarray | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return a picture [height, width, 3] uint8 in the render mode "rgb_array", else None.

        Raises:
            CannotDrawError: neither EGL nor OSMesa works on this machine.
            gymnasium.error.ResetNeeded: `reset` was not called before.
        """
        if self.render_mode is None:
            gymnasium.logger.warn('render() needs a render mode: use make(..., render_mode="rgb_array")')
            return None
        if self._state is None:
            raise gymnasium.error.ResetNeeded("call reset before render")
        if self._camera is None:
            self._camera = Camera(self.env, **self._picture_size)
        physics: Any = self._state.pipeline_state
        return self._camera.picture(np.asarray(physics.qpos), np.asarray(self._state.info["goal"]))

    def close(self) -> None:
        """Close the camera, if there is one."""
        if self._camera is not None:
            self._camera.close()
            self._camera = None

    def _observe(self, state: State) -> tuple[Observation, dict[str, Any]]:
        """Return copies, because JAX's arrays are read-only, and a later step may reuse their memory."""
        sensed, goal = (np.array(state.info[part], np.float32) for part in ("state", "goal"))
        achieved = np.array(self.env.achieved_goal(state.info["state"]), np.float32)
        success = bool(state.metrics["success"] > 0)
        # the replay buffers and monitors of other libraries look for is_success
        info = {"success": success, "is_success": success, "distance": float(state.metrics["distance"])}
        return {"state": sensed, "achieved_goal": achieved, "desired_goal": goal}, info

    def _checked(self, action: np.ndarray) -> np.ndarray:
        """Return `action` as float32 if its shape and values are valid."""
        values = np.asarray(action, np.float32)
        names = self.env.spec.action_names
        if values.shape != (len(names),):
            raise ValueError(f"an action of {self.env.spec.name} must have shape {(len(names),)}, got {values.shape}")
        if not np.isfinite(values).all():
            pairs = zip(names, values, strict=True)
            bad = ", ".join(f"{name} is {value}" for name, value in pairs if not np.isfinite(value))
            raise ValueError(f"an action of {self.env.spec.name} must be finite, but {bad}")
        return values


def register(names: str | Iterable[str] | None = None) -> None:
    """Register `names` with Gymnasium as "kilolayer/<name>-v0".

    Args:
        names: any that `registry.find` knows; by default, all that `registry.names` lists.

    Raises:
        UnknownNameError: a name is not known; then none is registered.
    """
    wanted = [names] if isinstance(names, str) else list(registry.names() if names is None else names)
    for name, entry in [(name, registry.find(name)) for name in wanted]:
        identity = f"kilolayer/{name.rpartition(':')[2]}-v0"  # Gymnasium would import what is before a colon
        if identity not in gymnasium.registry:
            gymnasium.register(
                identity,
                entry_point=f"{__name__}:{GymnasiumEnv.__name__}",
                max_episode_steps=entry.episode_length,
                kwargs={"name": name},
            )


class _Compiled(NamedTuple):
    env: GoalEnv
    reset: Callable[[jax.Array], State]
    step: Callable[[State, jax.Array], State]
    start_at: Callable[[jax.Array, jax.Array, jax.Array], State]


class _Given(NamedTuple):
    """What the options of a reset give; None is drawn."""

    qpos: np.ndarray | None
    qvel: np.ndarray | None
    goal: np.ndarray | None

    @property
    def any(self) -> bool:
        return any(part is not None for part in self)

    @classmethod
    def from_options(cls, env: GoalEnv, options: Mapping[str, Any]) -> "_Given":
        """Check the options of a reset.

        Raises:
            ValueError: as `GymnasiumEnv.reset`.
        """
        _require_known("options", options, known=("goal", "start"))
        start = options.get("start")
        if start is not None and not isinstance(start, Mapping):
            raise ValueError(f'start must be a dictionary such as {{"qpos": [...]}}, got {start!r:.80}')
        _require_known("start", start or {}, known=("qpos", "qvel"))
        if start is not None and "qpos" not in start:
            raise ValueError("start needs qpos, the positions of the joints")
        goal = _vector("goal", options.get("goal"), size=env.goal_size)
        if start is None:
            return cls(None, None, goal)
        at_rest = np.zeros(env.model.nv)
        qpos = _vector("start qpos", start["qpos"], size=env.model.nq)
        return cls(qpos, _vector("start qvel", start.get("qvel", at_rest), size=env.model.nv), goal)


def _require_known(what: str, given: Mapping[str, Any], *, known: tuple[str, ...]) -> None:
    if unknown := sorted(str(key) for key in given if key not in known):
        raise ValueError(f"{what} of a reset may have {' and '.join(known)}, got {', '.join(unknown)}")


def _vector(what: str, values: Any, *, size: int) -> np.ndarray | None:
    """Return `values` as float32 [size]; None if they are None.

    Raises:
        ValueError: another shape, or a number that is not finite.
    """
    if values is None:
        return None
    try:
        vector = np.asarray(values, np.float32)
    except (TypeError, ValueError):
        vector = np.zeros(0)
    if vector.shape != (size,) or not np.isfinite(vector).all():
        raise ValueError(f"{what} of a reset must be {size} finite numbers, got {values!r:.200}")
    return vector


@functools.cache
def _first_process() -> int:
    """Return the id of the process that made the first environment and runs JAX; forks inherit the cached value."""
    return os.getpid()


def _require_no_fork() -> None:
    """Refuse to run in a forked process, in which JAX would hang because its threads are missing."""
    if os.getpid() != _first_process():
        raise RuntimeError(
            'JAX does not survive a fork: make vector environments with vector_kwargs={"context": "spawn"}, or with '
            'vectorization_mode="sync"'
        )


@functools.cache
def _compiled(name: str, impl: str) -> _Compiled:
    """Return the environment and its two functions, compiled at the first call; they are pure and can be shared."""
    env = registry.make(name, impl=impl)
    return _Compiled(env, jax.jit(env.reset), jax.jit(env.step), jax.jit(env.start_at))


register()
