"""GoalEnv: one robot with one goal on MuJoCo MJX; it can be used wherever a brax environment can.

State and goal are two named arrays, `state.info["state"]` and `state.info["goal"]`. `state.obs` is the flat observation
that brax's trainers use: state and goal joined here, and split nowhere.
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

from policy.spec import to_action
from training.envs.core import actuators, physics
from training.envs.core.env_spec import EnvSpec, whole
from training.envs.core.errors import EnvError


class Rectangle(NamedTuple):
    """An axis-aligned obstacle seen from above, in meters."""

    low: tuple[float, float]
    high: tuple[float, float]


class GoalEnv(Env):
    """A goal-reaching task: `reset` draws a new start and goal, `step` advances one control period.

    Reaching the goal does not end an episode; only `terminated` or the caller's time limit does. The reward is 1 on
    every step within `spec.success_radius` of the goal, else 0. Both functions work on one environment; use `jax.vmap`
    for a batch.

    Args:
        env_spec: names, success radius, episode length, and what the model does not say.
        model: the compiled MuJoCo model. Actions of -1 and 1 stand for the ends of its actuators' control ranges.
        substeps: physics steps per control step.
        impl: the MJX implementation, "jax" or "warp".

    Raises:
        EnvError: `substeps` is not a positive integer, or `env_spec.actuator_kind` contradicts the model.
        UnknownNameError: no such implementation.
        NotImplementedError: the implementation does not support something that the model uses.
    """

    warp_sizes: ClassVar[physics.WarpSizes | None] = None
    """Array sizes for `impl="warp"`, as measured by benchmarks/contact_sizes.py; None leaves them to MJX."""

    def __init__(self, env_spec: EnvSpec, model: mujoco.MjModel, *, substeps: int, impl: str = "jax") -> None:
        self.spec = env_spec
        self.model = model
        self.substeps = whole(substeps, field="substeps", where=env_spec.name, usual=4)
        self._physics = physics.make(model, impl=impl, sizes=self.warp_sizes)
        self._mjx_model = self._physics.model
        self._control_low, self._control_high = jnp.asarray(model.actuator_ctrlrange.T)
        self._rest_control = actuators.rest_control(model)
        self._require_actuator_kinds()

    @abc.abstractmethod
    def sample_start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Draw a start: joint positions [nq] and velocities [nv]."""

    @abc.abstractmethod
    def sample_goal(self, key: jax.Array) -> jax.Array:
        """Draw a goal [goal_dim]."""

    def sample_task(self, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Draw a start and a goal: positions [nq], velocities [nv], goal [goal_dim]. By default, independently."""
        start_key, goal_key = jax.random.split(key)
        return *self.sample_start(start_key), self.sample_goal(goal_key)

    @abc.abstractmethod
    def sense(self, data: mjx.Data) -> jax.Array:
        """Return the state [state_dim]. At a reset, only `qpos` and `qvel` of `data` are current."""

    @abc.abstractmethod
    def achieved_goal(self, state: jax.Array) -> jax.Array:
        """Return the part of `state: [..., state_dim]` that is compared with a goal, [..., goal_dim]."""

    def terminated(self, state: jax.Array) -> jax.Array:
        """Return whether `state: [state_dim]` ends the episode early, a boolean scalar. By default, never."""
        return jnp.zeros(state.shape[:-1], bool)

    def current_goal(self, state: jax.Array, goal: jax.Array) -> jax.Array:  # noqa: ARG002
        """Return the goal at `state: [state_dim]`, given the previous `goal`. By default, goals do not move."""
        return goal

    def floor_plan(self) -> tuple[Rectangle, ...]:
        """Return the obstacles seen from above, for pictures."""
        return ()

    def marker(self, goal: np.ndarray) -> np.ndarray:
        """Return where pictures show `goal: [goal_dim]`, [3] in meters. By default, its first three values."""
        place = np.zeros(3)
        place[: len(goal)] = goal[:3]
        return place

    def view(self) -> tuple[float, float]:
        """Return the camera's azimuth and elevation in degrees. A maze is oriented like its text."""
        return (180.0, -65.0) if self.floor_plan() else (120.0, -30.0)

    def distance(self, state: jax.Array, goal: jax.Array) -> jax.Array:
        """Return the distance of `state: [..., state_dim]` from `goal: [..., goal_dim]`, in the goal's unit, [...]."""
        return self.goal_distance(self.achieved_goal(state), goal)

    def goal_distance(self, achieved: jax.Array, goal: jax.Array) -> jax.Array:
        """Return the distance of `achieved` from `goal`, both [..., goal_dim], in the goal's unit, [...]."""
        return jnp.linalg.norm(achieved - goal, axis=-1)

    def control(self, action: jax.Array) -> jax.Array:
        """Return the controls [nu] for `action: [action_dim]`. By default, -1 to 1 map to the control ranges."""
        return self._control_low + (action + 1) / 2 * (self._control_high - self._control_low)

    def reset(self, rng: jax.Array) -> State:
        """Draw a new start and a new goal with the random key `rng`."""
        return self.start_at(*self.sample_task(rng))

    def start_at(self, qpos: jax.Array, qvel: jax.Array, goal: jax.Array) -> State:
        """Return the start at positions [nq] and velocities [nv], with the commanded `goal: [goal_dim]`."""
        return self._observe(self._physics.start(qpos, qvel), goal)

    def step(self, state: State, action: jax.Array) -> State:
        """Advance one control period with `action: [action_dim]`, clipped to [-1, 1] and held throughout."""
        before: Any = state.pipeline_state
        controlled = before.replace(ctrl=self.control(jnp.clip(action, -1, 1)))
        data = self._physics.step(controlled, substeps=self.substeps)
        return self._observe(data, state.info["goal"], before=state)

    def with_goal(self, state: State, goal: jax.Array) -> State:
        """Return the same state with another commanded goal."""
        return self._observe(state.pipeline_state, goal, before=state)

    def diverged_part(self, state: State) -> jax.Array:
        """Return what has diverged in this world, int32; -1 if nothing has. `part_name` has a name for it.

        A joint's position or velocity has diverged if it is NaN, infinite or beyond 1e10, and so has a value of the
        state or the goal.
        """
        sensed = physics.diverged(state.obs).any()
        data: Any = state.pipeline_state
        if not isinstance(data, mjx.Data):
            return jnp.where(sensed, 0, -1).astype(jnp.int32)
        joint = physics.diverged_joint(self.model, data)
        return jnp.where(sensed | (joint < self.model.njnt), joint, -1).astype(jnp.int32)

    def part_name(self, part: int) -> str:
        """Return a name for what `diverged_part` returned, for messages."""
        model = getattr(self, "model", None)
        if model is None or part >= model.njnt:
            return "the sensed state"
        return f"joint {model.joint(part).name or part!r}"

    def overflow(self, state: State) -> jax.Array:
        """Return flags of what did not fit into Warp's arrays in this world, int32; 0 if everything did, and in JAX."""
        return physics.overflow(state.pipeline_state)

    def require_no_overflow(self, flags: jax.Array | np.ndarray) -> None:
        """Raise an error if any of `flags`, as returned by `overflow`, is set.

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
        """The value that an action of -1 stands for, in the unit of `spec.action_names`."""
        return tuple(self.model.actuator_ctrlrange[:, 0].tolist())

    @property
    def action_high(self) -> tuple[float, ...]:
        """The value that an action of 1 stands for, in the unit of `spec.action_names`."""
        return tuple(self.model.actuator_ctrlrange[:, 1].tolist())

    @property
    def actuator_kind(self) -> tuple[str, ...]:
        """What each action drives, [action_dim]: position, velocity, torque or other.

        By default, read from the model's actuators; other if `control` is a method of a subclass.
        """
        if self.spec.actuator_kind:
            return self.spec.actuator_kind
        return actuators.kinds(self.model) if self._controls_actuators else ("other",) * self.action_size

    @property
    def rest_action(self) -> tuple[float, ...]:
        """The action that leaves the robot at rest, [action_dim] in [-1, 1].

        By default, the control of the model's first keyframe, or 0 if there is none, clipped to the actuators' limits;
        0 in the action's own unit if `control` is a method of a subclass.
        """
        if self.spec.rest_action:
            return self.spec.rest_action
        rest = self._rest_control.tolist() if self._controls_actuators else [0.0] * self.action_size
        limits = zip(rest, self.action_low, self.action_high, strict=True)
        return tuple(to_action(value, low=low, high=high) for value, low, high in limits)

    @property
    def _controls_actuators(self) -> bool:
        """Whether every action is the control of one actuator."""
        return type(self).control is GoalEnv.control and self.model.nu == self.action_size

    @property
    def state_size(self) -> int:
        """Number of values in a state."""
        return len(self.spec.state_names)

    @property
    def goal_size(self) -> int:
        """Number of values in a goal."""
        return len(self.spec.goal_names)

    @property
    def action_size(self) -> int:
        """Number of values in an action."""
        return len(self.spec.action_names)

    @property
    def observation_size(self) -> int:
        """Number of values in brax's flat observation: the state, then the goal."""
        return self.state_size + self.goal_size

    @property
    def backend(self) -> str:
        """brax's name for the physics."""
        return "mjx"

    @property
    def dt(self) -> float:
        """brax's name for `control_period_s`."""
        return self.control_period_s

    def _require_actuator_kinds(self) -> None:
        """Refuse a kind in the spec that the model contradicts. What the model calls other may be anything."""
        if not (self.spec.actuator_kind and self._controls_actuators):
            return
        for name, stated, found in zip(
            self.spec.action_names, self.spec.actuator_kind, actuators.kinds(self.model), strict=True
        ):
            if found not in ("other", stated):
                where = ": ".join(filter(None, (self.spec.source, self.spec.name)))
                raise EnvError(
                    f"{where}: actuator_kind of {name!r} is {stated!r}, but its actuator in the model is of the kind "
                    f"{found!r}; use that, or leave actuator_kind empty"
                )

    def _observe(self, data: mjx.Data, goal: jax.Array, *, before: State | None = None) -> State:
        """Return the state for `data` and `goal`, with the entries that brax's wrappers stored in `before`."""
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
