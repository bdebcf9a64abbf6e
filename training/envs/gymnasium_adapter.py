"""Every environment under Gymnasium: importing this module makes `gymnasium.make("kilolayer/point_u_maze-v0")` work.

Observations are dicts as users of goal environments know them: `state`, `achieved_goal`, `desired_goal`. The physics is
the same as in training, MJX, compiled at the first step; environments of one name share what is compiled.
"""

import functools
import os
from collections.abc import Callable, Iterable
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
    """One robot and one goal, under Gymnasium's interface. Actions beyond [-1, 1] are clipped.

    Args:
        name: the environment's name in the registry.
        impl: the MJX implementation, "jax" or "warp".
        render_mode: "rgb_array" for pictures.
        width: of a picture, in pixels.
        height: of a picture, in pixels.

    Raises:
        UnknownNameError: there is no such environment or implementation.
        ValueError: there is no such render mode, or no picture of such a size.
        RuntimeError: this process was forked from one in which JAX runs.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012  as Gymnasium declares it

    def __init__(
        self, name: str, *, impl: str = "jax", render_mode: str | None = None, width: int = 640, height: int = 480
    ) -> None:
        _require_no_fork()
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f'render_mode must be "rgb_array" or None, not {render_mode!r}')
        self._compiled = _compiled(name, impl)
        self.env = self._compiled.env
        if render_mode is not None:
            require_size(self.env, width=width, height=height)
        self.metadata = {**self.metadata, "render_fps": 1 / self.env.control_period_s}
        self.render_mode = render_mode
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (self.env.action_size,), np.float32)
        goal_size = self.env.goal_size
        sizes = {"state": self.env.state_size, "achieved_goal": goal_size, "desired_goal": goal_size}
        # nothing is known of how far a state or a goal can go
        boxes = ((part, gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)) for part, size in sizes.items())
        self.observation_space: Any = gymnasium.spaces.Dict(tuple(boxes))
        self._picture_size = {"width": width, "height": height}
        self._camera: Camera | None = None
        self._state: State | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """A fresh start and a fresh goal. All that are drawn follow from the last `seed`; there are no `options`."""
        super().reset(seed=seed, options=options)
        self._state = self._compiled.reset(jax.random.key(int(self.np_random.integers(2**31))))
        return self._observe(self._state)

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Hold `action: [action_dim]` for one control period.

        Raises:
            ValueError: the action has another shape, or a value that is not a number.
            gymnasium.error.ResetNeeded: there was no `reset` before.
        """
        if self._state is None:
            raise gymnasium.error.ResetNeeded("call reset before step")
        self._state = self._compiled.step(self._state, jnp.asarray(self._checked(action)))
        observation, info = self._observe(self._state)
        return observation, float(self._state.reward), bool(self._state.done), False, info

    def compute_reward(self, achieved_goal: np.ndarray, desired_goal: np.ndarray, info: object) -> np.ndarray:
        """The reward of rows of goals, both [..., goal_dim]: 1 within the success radius, else 0, [...] float32.

        `info` is not needed; it may be whatever a replay of the caller's holds.

        Raises:
            ValueError: a row is not a goal of this environment, such as a whole state.
        """
        del info
        for name, goals in (("achieved_goal", achieved_goal), ("desired_goal", desired_goal)):
            if np.shape(goals)[-1:] != (self.env.goal_size,):
                size = self.env.goal_size
                raise ValueError(f"{name} must hold rows of {size} values, not be of shape {np.shape(goals)}")
        distance = self.env.goal_distance(jnp.asarray(achieved_goal), jnp.asarray(desired_goal))
        return np.array(distance < self.env.spec.success_radius, np.float32)

    def render(self) -> np.ndarray | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What is seen now, [height, width, 3] uint8, in the render mode "rgb_array"; else nothing.

        Raises:
            CannotDrawError: this machine has nothing to draw with.
            gymnasium.error.ResetNeeded: there was no `reset` before.
        """
        if self.render_mode is None:
            gymnasium.logger.warn('nothing is drawn without a render mode: make(..., render_mode="rgb_array")')
            return None
        if self._state is None:
            raise gymnasium.error.ResetNeeded("call reset before render")
        if self._camera is None:
            self._camera = Camera(self.env, **self._picture_size)
        physics: Any = self._state.pipeline_state
        return self._camera.picture(np.asarray(physics.qpos), np.asarray(self._state.info["goal"]))

    def close(self) -> None:
        """Give the camera back, if there is one."""
        if self._camera is not None:
            self._camera.close()
            self._camera = None

    def _observe(self, state: State) -> tuple[Observation, dict[str, Any]]:
        """Copies: what JAX holds can be neither changed nor, with a later step, trusted to stay."""
        sensed, goal = (np.array(state.info[part], np.float32) for part in ("state", "goal"))
        achieved = np.array(self.env.achieved_goal(state.info["state"]), np.float32)
        info = {"success": bool(state.metrics["success"] > 0), "distance": float(state.metrics["distance"])}
        return {"state": sensed, "achieved_goal": achieved, "desired_goal": goal}, info

    def _checked(self, action: np.ndarray) -> np.ndarray:
        """The action as float32, if it is one."""
        values = np.asarray(action, np.float32)
        names = self.env.spec.action_names
        if values.shape != (len(names),):
            raise ValueError(f"an action of {self.env.spec.name} has shape {(len(names),)}, not {values.shape}")
        if not np.isfinite(values).all():
            pairs = zip(names, values, strict=True)
            bad = ", ".join(f"{name} is {value}" for name, value in pairs if not np.isfinite(value))
            raise ValueError(f"an action of {self.env.spec.name} must be made of finite numbers, but {bad}")
        return values


def register(names: str | Iterable[str] | None = None) -> None:
    """Make `gymnasium.make("kilolayer/<name>-v0")` work for `names`: any that `registry.find` knows, or all it lists.

    Raises:
        UnknownNameError: one of them is not known; none is registered then.
    """
    wanted = [names] if isinstance(names, str) else list(registry.names() if names is None else names)
    for name, entry in [(name, registry.find(name)) for name in wanted]:
        identity = f"kilolayer/{name.rpartition(':')[2]}-v0"  # what stands before a colon Gymnasium would import
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


@functools.cache
def _first_process() -> int:
    """The process in which the first environment was made, and JAX has run since; its forks remember it too."""
    return os.getpid()


def _require_no_fork() -> None:
    """Refuse to wait for ever, as JAX would in a process without the threads that it had before a fork."""
    if os.getpid() != _first_process():
        raise RuntimeError(
            'JAX does not survive a fork of its process: make vectors with vector_kwargs={"context": "spawn"}, or with '
            'vectorization_mode="sync"'
        )


@functools.cache
def _compiled(name: str, impl: str) -> _Compiled:
    """The environment and its two functions, compiled when first called; both are pure, so all may share them."""
    env = registry.make(name, impl=impl)
    return _Compiled(env, jax.jit(env.reset), jax.jit(env.step))


register()
