"""The reacher: two links in a plane, whose tip must reach a point.

The robot is brax's model file on MuJoCo dynamics, with torques of up to 25 N m. A control step is four physics steps of
0.01 s. Nothing collides.
"""

# MuJoCo is compiled and ships no type information.
# pyright: reportAttributeAccessIssue=false

import jax
import jax.numpy as jnp
import mujoco
from mujoco import mjx

from training.envs.building import brax_models
from training.envs.core import kinematics
from training.envs.core.goal_env import EnvSpec, GoalEnv
from training.envs.core.physics import WarpSizes

EPISODE_LENGTH = 1000
_TIMESTEP_S = 0.01
_SUBSTEPS = 4
_TORQUE_NM = 25.0
_GOAL_DISTANCE_M = 0.2
_GOAL_HEIGHT_M = 0.01
_ANGLE_NOISE = 0.1  # rad, in both directions
_RATE_NOISE = 0.005  # rad/s, in both directions


class Reacher(GoalEnv):
    """Bring the tip to a point.

    State: cosine and sine of both joint angles, the tip's position and velocity. Goal: a position for the tip.
    """

    warp_sizes = WarpSizes(contacts=8, rows=8)

    def __init__(self, name: str, *, impl: str = "jax") -> None:
        model = build_model()
        env_spec = EnvSpec(
            name=name,
            state_names=(
                *(f"cos joint{joint}" for joint in (0, 1)),
                *(f"sin joint{joint}" for joint in (0, 1)),
                *(f"tip {axis} [m]" for axis in "xyz"),
                *(f"tip v{axis} [m/s]" for axis in "xyz"),
            ),
            goal_names=("x [m]", "y [m]", "z [m]"),
            action_names=("joint0 [N m]", "joint1 [N m]"),
            success_radius=0.05,
            episode_length=EPISODE_LENGTH,
        )
        super().__init__(env_spec, model, substeps=_SUBSTEPS, impl=impl)
        self._body_velocities = kinematics.BodyVelocities(model)
        self._tip = model.body("fingertip").id

    def sample_start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Stretched along x, with noise on angles and rates."""
        angle_key, rate_key = jax.random.split(key)
        angles = jax.random.uniform(angle_key, (2,), minval=-_ANGLE_NOISE, maxval=_ANGLE_NOISE)
        return angles, jax.random.uniform(rate_key, (2,), minval=-_RATE_NOISE, maxval=_RATE_NOISE)

    def sample_goal(self, key: jax.Array) -> jax.Array:
        """A uniformly random direction and distance, up to 0.2 m."""
        angle_key, distance_key = jax.random.split(key)
        angle = jax.random.uniform(angle_key, maxval=2 * jnp.pi)
        distance = jax.random.uniform(distance_key, maxval=_GOAL_DISTANCE_M)
        return jnp.stack([distance * jnp.cos(angle), distance * jnp.sin(angle), jnp.asarray(_GOAL_HEIGHT_M)])

    def sense(self, data: mjx.Data) -> jax.Array:
        """Angles, and the tip's position and velocity."""
        current = kinematics.update_poses(self._mjx_model, data)
        tip = current.xpos[self._tip]
        velocity = self._body_velocities.linear_velocity(current, self._tip, point=tip)
        return jnp.concatenate([jnp.cos(data.qpos), jnp.sin(data.qpos), tip, velocity])

    def achieved_goal(self, state: jax.Array) -> jax.Array:
        """The tip's position."""
        return state[..., 4:7]


def build_model() -> mujoco.MjModel:
    """Return the two links, without the file's target body, since goals need no body."""
    spec = brax_models.load("reacher.xml", timestep_s=_TIMESTEP_S, floor="ground", tile_m=0.1)
    spec.delete(spec.body("target"))
    for motor in spec.actuators:
        brax_models.set_torque(motor, _TORQUE_NM)
    return spec.compile()
