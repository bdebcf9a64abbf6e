"""GoalEnv: one robot, one goal, on MuJoCo MJX, usable wherever a brax environment is.

State and goal stay two named arrays: `state.info["state"]` and `state.info["goal"]`. The flat observation that brax's
own trainers want, `state.obs`, is put together from them here and taken apart nowhere.
"""

# MuJoCo is compiled and ships no type information, and brax types its physics by its own retired pipelines.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false

import abc
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from brax.envs.base import Env, State
from mujoco import mjx

from training.envs.core import physics
from training.envs.core.env_spec import EnvSpec, whole


class Rectangle(NamedTuple):
    """An axis-aligned obstacle seen from above, in metres."""

    low: tuple[float, float]
    high: tuple[float, float]


class GoalEnv(Env):
    """A goal-reaching task: `reset` draws a fresh start and goal, `step` advances one control period.

    Reaching the goal never ends an episode; only `terminated` does, or the caller's own time limit. The reward is 1
    on every step within `spec.success_radius` of the goal, else 0. Both functions work on one environment: `jax.vmap`
    them.

    Args:
        env_spec: names, sizes and limits.
        model: the compiled MuJoCo model; its actuators' control ranges are what actions of -1 and 1 stand for.
        substeps: physics steps per control step.
        impl: the MJX implementation, "jax" or "warp".

    Raises:
        EnvError: `substeps` is not a whole number from 1 up.
        UnknownNameError: there is no such implementation.
        NotImplementedError: the implementation lacks something that the model uses.
    """

    warp_sizes: ClassVar[physics.WarpSizes | None] = None
    """What `impl="warp"` has room for, as benchmarks/contact_sizes.py has measured; None leaves it to MJX's guess."""

    def __init__(self, env_spec: EnvSpec, model: mujoco.MjModel, *, substeps: int, impl: str = "jax") -> None:
        self.spec = env_spec
        self.model = model
        self.substeps = whole(substeps, field="substeps", where=env_spec.name, usual=4)
        self._physics = physics.make(model, impl=impl, sizes=self.warp_sizes)
        self._mjx_model = self._physics.model
        self._control_low, self._control_high = jnp.asarray(model.actuator_ctrlrange.T)

    @abc.abstractmethod
    def sample_start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Draw a start: joint positions [nq] and velocities [nv]."""

    @abc.abstractmethod
    def sample_goal(self, key: jax.Array) -> jax.Array:
        """Draw a goal [goal_dim]."""

    def sample_task(self, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Draw a start and a goal: positions [nq], velocities [nv], goal [goal_dim]. Apart, unless a task says so."""
        start_key, goal_key = jax.random.split(key)
        return *self.sample_start(start_key), self.sample_goal(goal_key)

    @abc.abstractmethod
    def sense(self, data: mjx.Data) -> jax.Array:
        """What the robot senses, [state_dim]. At a reset only `qpos` and `qvel` of `data` are current."""

    @abc.abstractmethod
    def achieved_goal(self, state: jax.Array) -> jax.Array:
        """The part of `state: [..., state_dim]` that a goal is compared with, [..., goal_dim]."""

    def terminated(self, state: jax.Array) -> jax.Array:
        """Whether `state: [state_dim]` ends the episode early, a boolean scalar. Never, unless a family says so."""
        return jnp.zeros(state.shape[:-1], bool)

    def current_goal(self, state: jax.Array, goal: jax.Array) -> jax.Array:  # noqa: ARG002
        """What is asked for at `state: [state_dim]`, given what was before: the same, unless a task's goal moves."""
        return goal

    def floor_plan(self) -> tuple[Rectangle, ...]:
        """The obstacles seen from above, for pictures."""
        return ()

    def marker(self, goal: np.ndarray) -> np.ndarray:
        """Where pictures show `goal: [goal_dim]`, [3] in metres: its first three values, zeros for lacking ones."""
        place = np.zeros(3)
        place[: len(goal)] = goal[:3]
        return place

    def view(self) -> tuple[float, float]:
        """Azimuth and elevation in degrees that pictures are taken at; a maze lies as its text is written."""
        return (180.0, -65.0) if self.floor_plan() else (120.0, -30.0)

    def distance(self, state: jax.Array, goal: jax.Array) -> jax.Array:
        """How far `state: [..., state_dim]` is from `goal: [..., goal_dim]`, in the goal's unit, [...]."""
        return self.goal_distance(self.achieved_goal(state), goal)

    def goal_distance(self, achieved: jax.Array, goal: jax.Array) -> jax.Array:
        """How far `achieved` is from `goal`, both [..., goal_dim], in the goal's unit, [...]: the straight line."""
        return jnp.linalg.norm(achieved - goal, axis=-1)

    def control(self, action: jax.Array) -> jax.Array:
        """What `action: [action_dim]` asks of the actuators, [nu]: their range, unless a family says otherwise."""
        return self._control_low + (action + 1) / 2 * (self._control_high - self._control_low)

    def reset(self, rng: jax.Array) -> State:
        """A fresh start and a fresh goal, drawn with the random key `rng`."""
        qpos, qvel, goal = self.sample_task(rng)
        return self._observe(self._physics.start(qpos, qvel), goal)

    def step(self, state: State, action: jax.Array) -> State:
        """Advance one control period with `action: [action_dim]`, clipped to [-1, 1] and held throughout."""
        before: Any = state.pipeline_state
        controlled = before.replace(ctrl=self.control(jnp.clip(action, -1, 1)))
        data = self._physics.step(controlled, substeps=self.substeps)
        return self._observe(data, state.info["goal"], before=state)

    def with_goal(self, state: State, goal: jax.Array) -> State:
        """The same moment with another commanded goal."""
        return self._observe(state.pipeline_state, goal, before=state)

    def overflow(self, state: State) -> jax.Array:
        """Flags of what Warp had no room for in this world, int32; 0 if nothing, and always in JAX."""
        return physics.overflow(state.pipeline_state)

    def require_no_overflow(self, flags: jax.Array | np.ndarray) -> None:
        """Make an error of any flag in `flags`, of `overflow`.

        Raises:
            PhysicsOverflowError: Warp dropped contacts or constraint rows; the message says which size to raise.
        """
        if np.any(flags) and (sizes := self._physics.sizes):
            family = type(self).__name__
            physics.require_no_overflow(np.asarray(flags), env=self.spec.name, family=family, sizes=sizes)

    @property
    def control_period_s(self) -> float:
        """Seconds between two actions."""
        return self.model.opt.timestep * self.substeps

    @property
    def action_low(self) -> tuple[float, ...]:
        """What an action of -1 stands for, in the unit of `spec.action_names`."""
        return tuple(self.model.actuator_ctrlrange[:, 0].tolist())

    @property
    def action_high(self) -> tuple[float, ...]:
        """What an action of 1 stands for, in the unit of `spec.action_names`."""
        return tuple(self.model.actuator_ctrlrange[:, 1].tolist())

    @property
    def state_size(self) -> int:
        """Values in one state."""
        return len(self.spec.state_names)

    @property
    def goal_size(self) -> int:
        """Values in one goal."""
        return len(self.spec.goal_names)

    @property
    def action_size(self) -> int:
        """Values in one action."""
        return len(self.spec.action_names)

    @property
    def observation_size(self) -> int:
        """Values in brax's flat observation: the state, then the goal."""
        return self.state_size + self.goal_size

    @property
    def backend(self) -> str:
        """The name brax knows the physics by."""
        return "mjx"

    @property
    def dt(self) -> float:
        """brax's name for `control_period_s`."""
        return self.control_period_s

    def _observe(self, data: mjx.Data, goal: jax.Array, *, before: State | None = None) -> State:
        """Everything that follows from the physics and the goal. What brax's wrappers stored in `before` is kept."""
        sensed = self.sense(data)
        goal = self.current_goal(sensed, goal)
        distance = self.distance(sensed, goal)
        success = (distance < self.spec.success_radius).astype(jnp.float32)
        return State(
            pipeline_state=data,
            obs=jnp.concatenate([sensed, goal]),
            reward=success,
            done=self.terminated(sensed).astype(jnp.float32),
            metrics={**(before.metrics if before else {}), "success": success, "distance": distance},
            info={**(before.info if before else {}), "state": sensed, "goal": goal},
        )
