"""The pusher: an arm of seven joints that pushes a puck over a table.

The robot is brax's model file on MuJoCo dynamics without gravity, with torques of up to 2 N m. A control step is five
physics steps of 0.01 s. The three capsules of the hand collide with the puck and the table.
"""

# MuJoCo is compiled and ships no type information.
# pyright: reportAttributeAccessIssue=false

from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
from mujoco import mjx

from training.envs.building import brax_models
from training.envs.core import kinematics
from training.envs.core.goal_env import EnvSpec, GoalEnv
from training.envs.core.physics import WarpSizes

EPISODE_LENGTH = 1000
JOINTS = 7
_TIMESTEP_S = 0.01
_SUBSTEPS = 5
_MIDDLE_M = (0.45, -0.05)  # center of the ranges of puck and goal
_MIN_DISTANCE_M = 0.17  # minimum distance from puck to goal at the start
_RATE_NOISE = 0.005  # rad/s, in both directions


class _Range(NamedTuple):
    """A range of random positions relative to the middle, in m."""

    low: tuple[float, float]
    high: tuple[float, float]


_PUCK = _Range((-0.2, -0.3), (0.2, 0.0))
_GOALS = {
    "pusher_easy": _Range((-0.2, -0.55), (0.2, -0.25)),
    "pusher_hard": _Range((-0.55, -0.65), (0.45, 0.35)),
}
NAMES = tuple(_GOALS)


class Pusher(GoalEnv):
    """Push the puck to a point.

    State: joint angles, the hand's position, the puck's position, joint rates. Goal: a position for the puck.
    """

    warp_sizes = WarpSizes(
        contacts=16, rows=56
    )  # also with hand and puck in contact, which is rare under random actions

    def __init__(self, name: str, *, impl: str = "jax") -> None:
        model = build_model()
        joints = [model.joint(index).name for index in range(JOINTS)]
        env_spec = EnvSpec(
            name=name,
            state_names=(
                *(f"{joint} [rad]" for joint in joints),
                *(f"hand {axis} [m]" for axis in "xyz"),
                *(f"puck {axis} [m]" for axis in "xyz"),
                *(f"{joint} rate [rad/s]" for joint in joints),
            ),
            goal_names=("x [m]", "y [m]", "z [m]"),
            action_names=tuple(f"{joint} [N m]" for joint in joints),
            success_radius=0.1,
            episode_length=EPISODE_LENGTH,
        )
        super().__init__(env_spec, model, substeps=_SUBSTEPS, impl=impl)
        self._goal = _GOALS[name]
        self._hand, self._puck = model.body("tips_arm").id, model.body("object").id
        self._height_m = float(model.body("object").pos[2])

    def sample_task(self, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The arm stretched out, with noise on its rates; the puck at least 0.17 m from the goal."""
        rate_key, puck_key, goal_key = jax.random.split(key, 3)
        goal = self.sample_goal(goal_key)
        puck = _draw(puck_key, _PUCK)
        offset = puck - goal[:2]
        distance = jnp.maximum(jnp.linalg.norm(offset), 1e-6)
        puck = goal[:2] + offset * jnp.maximum(1, _MIN_DISTANCE_M / distance)
        slides = (puck - jnp.asarray(_MIDDLE_M))[::-1]  # the puck's first slide is along y
        rates = jax.random.uniform(rate_key, (JOINTS,), minval=-_RATE_NOISE, maxval=_RATE_NOISE)
        return jnp.append(jnp.zeros(JOINTS), slides), jnp.append(rates, jnp.zeros(2)), goal

    def sample_start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A start without its goal, with the distribution of `sample_task`."""
        qpos, qvel, _ = self.sample_task(key)
        return qpos, qvel

    def sample_goal(self, key: jax.Array) -> jax.Array:
        """A uniformly random position in the task's range, at the puck's height."""
        return jnp.append(_draw(key, self._goal), self._height_m)

    def sense(self, data: mjx.Data) -> jax.Array:
        """Joint angles, hand, puck, joint rates."""
        current = kinematics.update_poses(self._mjx_model, data)
        return jnp.concatenate(
            [data.qpos[:JOINTS], current.xipos[self._hand], current.xpos[self._puck], data.qvel[:JOINTS]]
        )

    def view(self) -> tuple[float, float]:
        """Return azimuth and elevation from the side of the puck, so that the arm does not hide it."""
        return -120.0, -45.0

    def achieved_goal(self, state: jax.Array) -> jax.Array:
        """The puck's position."""
        return state[..., 10:13]


def _draw(key: jax.Array, within: _Range) -> jax.Array:
    """Return a uniformly random point of `within` on the table, [2]."""
    low, high = jnp.asarray(within.low), jnp.asarray(within.high)
    return jnp.asarray(_MIDDLE_M) + jax.random.uniform(key, (2,), minval=low, maxval=high)


def build_model() -> mujoco.MjModel:
    """Return the arm and the puck, without the file's goal body, since goals need no body."""
    spec = brax_models.load(
        "pusher.xml", timestep_s=_TIMESTEP_S, floor="table", tile_m=0.2, iterations=4, ls_iterations=8
    )
    spec.delete(spec.body("goal"))
    return spec.compile()
