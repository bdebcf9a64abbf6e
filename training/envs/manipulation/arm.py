"""The Panda arm at a table: reach a point, grasp a cube, push it, or lift it from one bin into another.

The tasks are those of arXiv 2408.11052 and arXiv 2503.14858. An action consists of four absolute target angles and, if
the hand has fingers, whether they close. It is held for ten physics steps of 5 ms.
"""

# MuJoCo is compiled and ships no type information.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from mujoco import mjx

from policy.spec import to_action
from training.envs.core.goal_env import EnvSpec, GoalEnv, Rectangle
from training.envs.core.physics import WarpSizes
from training.envs.manipulation import panda, table

EPISODE_LENGTH = 1000
_SUBSTEPS = 10
_TARGETS = {1: (0.3491, 2.7925), 2: (0.0, 1.48353), 4: (-3.0718, -0.0698), 6: (2.3562, 3.7525)}  # rad
_START_ANGLES = (1.571, 0.742, -1.571, 3.054)  # rad, of the moving joints
_START_FINGERS_M = 0.04
_REACH_CENTER, _REACH_HALF_M = (0.0, 0.5, 0.3), 0.2
_GRASP_SQUARE = (0.0, 0.6, 0.3)
_GRASP_SIDE_M = 0.0375  # from the center of the cube to the goal of each fingertip
_GRASP_RADIUS_M, _GRASP_TOLERANCE_M = 0.05, 0.02

_ARM_STATE = (
    *(f"joint {index} [rad]" for index in range(1, 8)),
    *(f"end effector {axis} [m]" for axis in "xyz"),
    *(f"end effector v{axis} [m/s]" for axis in "xyz"),
)
_CUBE_STATE = tuple(f"cube {axis} [m]" for axis in "xyz")
_ARM_ACTIONS = tuple(f"joint {index} target [rad]" for index in panda.MOVING)
_ARM_REST = tuple(  # the targets at which the servos hold the start pose
    to_action(angle, low=low, high=high)
    for angle, (low, high) in zip(_START_ANGLES, (_TARGETS[index] for index in panda.MOVING), strict=True)
)
_GRIPPER_ACTIONS = (*_ARM_ACTIONS, "gripper [closed above 0]")
_GRIPPER_KINDS = (*("position" for _ in _ARM_ACTIONS), "other")  # the gripper is open or closed
_GRIPPER_REST = (*_ARM_REST, -1.0)  # open


class Arm(GoalEnv):
    """What all tasks share: the arm's part of the state, and its start."""

    def __init__(self, env_spec: EnvSpec, model: mujoco.MjModel, *, impl: str) -> None:
        super().__init__(env_spec, model, substeps=_SUBSTEPS, impl=impl)
        joints = [model.joint(f"joint {index}") for index in panda.MOVING]
        self._joints = jnp.array([joint.id for joint in joints])
        self._angles = jnp.array([joint.qposadr[0] for joint in joints])
        self._rates = jnp.array([joint.dofadr[0] for joint in joints])

    def sample_start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:  # noqa: ARG002
        """The arm in its start pose, at rest, without noise."""
        qpos = jnp.asarray(self.model.qpos0, jnp.float32)
        return qpos.at[self._angles].set(jnp.array(_START_ANGLES)), jnp.zeros(self.model.nv)

    def view(self) -> tuple[float, float]:
        """Across the table, past the arm."""
        return -60.0, -40.0

    def site_position(self, data: mjx.Data, site: str) -> jax.Array:
        """Return the position of a site, [3] in meters."""
        return data.site_xpos[self.model.site(site).id]

    def update_poses(self, data: mjx.Data) -> mjx.Data:
        """Return `data` with current poses: after a step, they are from before its last integration."""
        return mjx.kinematics(self._mjx_model, data)

    def sense_arm(self, data: mjx.Data) -> jax.Array:
        """Return seven angles, and the end effector's position and velocity, [13], from `data` with current poses."""
        angles = dict(zip(panda.MOVING, data.qpos[self._angles], strict=True)) | panda.LOCKED
        place = self.site_position(data, panda.END_EFFECTOR)
        levers = place - data.xanchor[self._joints]
        velocity = data.qvel[self._rates] @ jnp.cross(data.xaxis[self._joints], levers)
        return jnp.concatenate([jnp.stack([angles[index] for index in sorted(angles)]), place, velocity])


class ArmReach(Arm):
    """Bring the end effector to a point in a box, without fingers and cube. State: the arm's. Goal: the point."""

    warp_sizes = WarpSizes(contacts=8, rows=16)

    def __init__(self, name: str, *, impl: str = "jax") -> None:
        env_spec = EnvSpec(
            name=name,
            state_names=_ARM_STATE,
            goal_names=tuple(f"{axis} [m]" for axis in "xyz"),
            action_names=_ARM_ACTIONS,
            success_radius=0.1,
            episode_length=EPISODE_LENGTH,
            rest_action=_ARM_REST,
        )
        super().__init__(env_spec, table.build_model(_TARGETS, cube=False), impl=impl)

    def sample_goal(self, key: jax.Array) -> jax.Array:
        """A uniformly random point in the box."""
        return jnp.array(_REACH_CENTER) + jax.random.uniform(key, (3,), minval=-_REACH_HALF_M, maxval=_REACH_HALF_M)

    def sense(self, data: mjx.Data) -> jax.Array:
        """The arm's angles, the end effector's position and velocity."""
        return self.sense_arm(self.update_poses(data))

    def achieved_goal(self, state: jax.Array) -> jax.Array:
        """The end effector's position."""
        return state[..., 7:10]


class ArmWithCube(Arm):
    """A hand with fingers, and a cube that starts at rest in a square.

    Args:
        square: center and half-width of the square, in meters.
    """

    # also with hand, cube and walls in contact, which is rare under random actions
    warp_sizes = WarpSizes(contacts=32, rows=96)

    def __init__(self, env_spec: EnvSpec, model: mujoco.MjModel, *, square: table.Square, impl: str) -> None:
        super().__init__(env_spec, model, impl=impl)
        self._square = square
        self._cube = model.joint("cube").qposadr[0]
        self._fingers = jnp.array([model.joint(side).qposadr[0] for side in panda.SIDES])

    def sample_start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The arm in its start pose, the fingers half open, the cube at a uniformly random place in its square."""
        qpos, qvel = super().sample_start(key)
        qpos = qpos.at[self._fingers].set(_START_FINGERS_M)
        return qpos.at[self._cube : self._cube + 3].set(on_table(key, self._square)), qvel

    def control(self, action: jax.Array) -> jax.Array:
        """Return the target angles, and closed fingers if the last value is above 0, else open ones."""
        fingers = jnp.where(action[-1:] > 0, -1.0, 1.0)
        return super().control(jnp.concatenate([action[:-1], fingers, fingers]))

    @property
    def action_low(self) -> tuple[float, ...]:
        """The lowest target angles, and -1 for open fingers."""
        return (*super().action_low[:-2], -1.0)

    @property
    def action_high(self) -> tuple[float, ...]:
        """The highest target angles, and 1 for closed fingers."""
        return (*super().action_high[:-2], 1.0)

    def cube(self, data: mjx.Data) -> jax.Array:
        """Return the center of the cube, [3] in meters."""
        return self.cube_at(data.qpos)

    def cube_at(self, qpos: jax.Array) -> jax.Array:
        """Return the center of the cube, [3] in meters, at the joint positions [nq]."""
        return qpos[self._cube : self._cube + 3]

    def tips(self, data: mjx.Data) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return the positions of left and right fingertip, [3] each, and their distance, [1], in meters."""
        left, right = (self.site_position(data, f"{side} tip") for side in panda.SIDES)
        return left, right, jnp.linalg.norm(left - right)[None]


class _Transport(NamedTuple):
    """Squares on the table: where the cube starts, and where its goals are."""

    start: table.Square
    goal: table.Square
    bins: table.Bins | None = None  # without bins, the two squares are drawn


TRANSPORTS: Mapping[str, _Transport] = MappingProxyType(
    {
        "arm_push_easy": _Transport((-0.1, 0.6, 0.1), (0.1, 0.6, 0.1)),
        "arm_push_hard": _Transport((-0.25, 0.65, 0.25), (0.25, 0.65, 0.25)),
        "arm_binpick_easy": _Transport((-0.15, 0.6, 0.09), (0.17, 0.6, 0.09), table.Bins(0.17, inner_half=0.135)),
        "arm_binpick_hard": _Transport((-0.3, 0.6, 0.15), (0.3, 0.6, 0.15), table.Bins(0.3, inner_half=0.185)),
    }
)


class ArmTransport(ArmWithCube):
    """Bring the cube to a place, by pushing it over the table or by lifting it from bin to bin.

    State: the cube's position, the arm's state, the opening of the fingers. Goal: a position for the cube.
    """

    def __init__(self, name: str, *, impl: str = "jax") -> None:
        task = TRANSPORTS[name]
        env_spec = EnvSpec(
            name=name,
            state_names=(*_CUBE_STATE, *_ARM_STATE, "opening [m]"),
            goal_names=tuple(f"{axis} [m]" for axis in "xyz"),
            action_names=_GRIPPER_ACTIONS,
            actuator_kind=_GRIPPER_KINDS,
            rest_action=_GRIPPER_REST,
            success_radius=0.1,
            episode_length=EPISODE_LENGTH,
        )
        self._goal, self._bins = task.goal, task.bins
        marks = () if task.bins else (task.start, task.goal)
        model = table.build_model(_TARGETS, cube=True, marks=marks, bins=task.bins)
        super().__init__(env_spec, model, square=task.start, impl=impl)

    def sample_goal(self, key: jax.Array) -> jax.Array:
        """A uniformly random place in the square of goals."""
        return on_table(key, self._goal)

    def sense(self, data: mjx.Data) -> jax.Array:
        """The cube's position, the arm's state, the opening of the fingers."""
        data = self.update_poses(data)
        return jnp.concatenate([self.cube(data), self.sense_arm(data), self.tips(data)[2]])

    def achieved_goal(self, state: jax.Array) -> jax.Array:
        """The cube's position."""
        return state[..., :3]

    def floor_plan(self) -> tuple[Rectangle, ...]:
        """The bins' walls."""
        return table.walls(self._bins) if self._bins else ()


class ArmGrasp(ArmWithCube):
    """Bring the fingertips to both sides of the cube, ready to close on it.

    State: the cube's position, the arm's state, both fingertips, their distance. Goal: both fingertips and their
    distance; it moves with the cube, so it cannot be chosen.
    """

    def __init__(self, name: str, *, impl: str = "jax") -> None:
        tips = (*(f"{side} tip {axis} [m]" for side in panda.SIDES for axis in "xyz"), "opening [m]")
        env_spec = EnvSpec(
            name=name,
            state_names=(*_CUBE_STATE, *_ARM_STATE, *tips),
            goal_names=tips,
            action_names=_GRIPPER_ACTIONS,
            actuator_kind=_GRIPPER_KINDS,
            rest_action=_GRIPPER_REST,
            success_radius=_GRASP_RADIUS_M,
            episode_length=EPISODE_LENGTH,
        )
        super().__init__(env_spec, table.build_model(_TARGETS, cube=True), square=_GRASP_SQUARE, impl=impl)

    def sample_goal(self, key: jax.Array) -> jax.Array:
        """The goal for a cube at a uniformly random place in its square."""
        return _around(on_table(key, _GRASP_SQUARE))

    def sample_task(self, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """A start, and the goal for its cube."""
        qpos, qvel = self.sample_start(key)
        return qpos, qvel, _around(self.cube_at(qpos))

    def current_goal(self, state: jax.Array, goal: jax.Array) -> jax.Array:  # noqa: ARG002
        """The goal for the current position of the cube."""
        return _around(state[:3])

    def sense(self, data: mjx.Data) -> jax.Array:
        """The cube's position, the arm's state, the fingertips, their distance."""
        data = self.update_poses(data)
        return jnp.concatenate([self.cube(data), self.sense_arm(data), *self.tips(data)])

    def achieved_goal(self, state: jax.Array) -> jax.Array:
        """Both fingertips and their distance."""
        return state[..., 16:23]

    def marker(self, goal: np.ndarray) -> np.ndarray:
        """The point between the fingertips."""
        return (goal[:3] + goal[3:6]) / 2

    def goal_distance(self, achieved: jax.Array, goal: jax.Array) -> jax.Array:
        """Return the larger of two errors, in meters: of the point between the fingertips, and of their distance.

        The tolerance is 5 cm for the point and 2 cm for the distance, so the latter's error counts 2.5 times.
        """
        middle = jnp.linalg.norm(_middle(achieved) - _middle(goal), axis=-1)
        opening = jnp.abs(achieved[..., 6] - goal[..., 6])
        return jnp.maximum(middle, opening * (_GRASP_RADIUS_M / _GRASP_TOLERANCE_M))


def on_table(key: jax.Array, square: table.Square) -> jax.Array:
    """Return the center [3] of a cube that rests at a uniformly random place in a square."""
    x, y, half = square
    noise = jax.random.uniform(key, (2,), minval=-half, maxval=half)
    return jnp.concatenate([jnp.array([x, y]) + noise, jnp.array([table.CUBE_HALF_M])])


def _around(cube: jax.Array) -> jax.Array:
    """Return the goal [7] for a cube at `cube: [3]`."""
    side = jnp.array([_GRASP_SIDE_M, 0, 0])
    return jnp.concatenate([cube + side, cube - side, jnp.array([2 * _GRASP_SIDE_M])])


def _middle(tips: jax.Array) -> jax.Array:
    return (tips[..., :3] + tips[..., 3:6]) / 2


TASKS: Mapping[str, Callable[..., Arm]] = MappingProxyType(
    {"arm_reach": ArmReach, "arm_grasp": ArmGrasp} | dict.fromkeys(TRANSPORTS, ArmTransport)
)
