"""The ant: a torso on four legs with two joints each, on MuJoCo dynamics.

The robot is brax's model file at ten times its density. It weighs 9.1 kg, as much as the published ant, whose nine
links weigh 1 kg each; at the file's 0.9 kg, torques of up to 150 N m throw it off its feet. A control step is five
physics steps of 0.01 s. Only the feet and the floor collide.
"""

# MuJoCo is compiled and ships no type information.
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

import jax
import jax.numpy as jnp
import mujoco
from mujoco import mjx

from training.envs.building import brax_models
from training.envs.core.goal_env import EnvSpec, GoalEnv
from training.envs.core.physics import WarpSizes

GOAL_DISTANCE_M = 10.0
EPISODE_LENGTH = 1000
NQ, NV = 15, 14  # number of positions and velocities of the ant, which come before those of other bodies
FEET = ("left_foot_geom", "right_foot_geom", "third_foot_geom", "fourth_foot_geom")
_TIMESTEP_S = 0.01
_SUBSTEPS = 5
DENSITY = 50.0  # kg/m^3, the ant's weight in all tasks but ant_push: ten times the file's
PUSH_DENSITY = 40.0  # kg/m^3, the ant's weight in ant_push, as published
_HEALTHY_HEIGHT_M = (0.2, 1.0)
START_HEIGHT_M = 0.55
_START = (0.0, 0.0, START_HEIGHT_M, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0, -1.0, 0.0, 1.0)
_START_NOISE = 0.1  # uniform for positions, standard deviation for velocities
_QUATERNION = slice(3, 7)


class Ant(GoalEnv):
    """Walk to a point on a circle of 10 m around the start.

    State: torso position and quaternion, joint angles, and their velocities. Goal: the torso's position on the floor.
    """

    warp_sizes = WarpSizes(contacts=8, rows=40)

    def __init__(
        self,
        name: str,
        *,
        impl: str = "jax",
        model: mujoco.MjModel | None = None,
        more_state_names: tuple[str, ...] = (),
    ) -> None:
        model = ant_spec().compile() if model is None else model
        joints = [model.joint(index).name for index in range(1, 1 + model.nu)]  # joint 0 is the torso's free joint
        motors = [model.actuator(index).name for index in range(model.nu)]
        env_spec = EnvSpec(
            name=name,
            state_names=(
                *(f"{axis} [m]" for axis in "xyz"),
                *(f"quaternion {part}" for part in "wxyz"),
                *(f"{joint} [rad]" for joint in joints),
                *(f"v{axis} [m/s]" for axis in "xyz"),
                *(f"w{axis} [rad/s]" for axis in "xyz"),
                *(f"{joint} rate [rad/s]" for joint in joints),
                *more_state_names,
            ),
            goal_names=("x [m]", "y [m]"),
            action_names=tuple(f"{motor} [N m]" for motor in motors),
            success_radius=0.5,
            episode_length=EPISODE_LENGTH,
            state_quaternions=(_QUATERNION.start,),
        )
        super().__init__(env_spec, model, substeps=_SUBSTEPS, impl=impl)

    def sample_start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Standing, with noise on all positions and velocities."""
        position_key, velocity_key = jax.random.split(key)
        noise = jax.random.uniform(position_key, (NQ,), minval=-_START_NOISE, maxval=_START_NOISE)
        qpos = jnp.asarray(_START) + noise
        quaternion = qpos[_QUATERNION]
        qpos = qpos.at[_QUATERNION].set(quaternion / jnp.linalg.norm(quaternion))
        return qpos, _START_NOISE * jax.random.normal(velocity_key, (NV,))

    def sample_goal(self, key: jax.Array) -> jax.Array:
        """A uniformly random point on the circle."""
        angle = jax.random.uniform(key, maxval=2 * jnp.pi)
        return GOAL_DISTANCE_M * jnp.stack([jnp.cos(angle), jnp.sin(angle)])

    def sense(self, data: mjx.Data) -> jax.Array:
        """All positions of the ant, then all velocities."""
        return jnp.concatenate([data.qpos[:NQ], data.qvel[:NV]])

    def achieved_goal(self, state: jax.Array) -> jax.Array:
        """The torso's position on the floor."""
        return state[..., :2]

    def terminated(self, state: jax.Array) -> jax.Array:
        """True when the torso is too low or too high for walking."""
        low, high = _HEALTHY_HEIGHT_M
        return (state[..., 2] < low) | (state[..., 2] > high)


def ant_spec(*, density: float = DENSITY) -> mujoco.MjSpec:
    """Return the ant on an infinite floor, with actuators in N m, to compile or add to.

    Args:
        density: of all parts of the ant, in kg/m^3.
    """
    spec = brax_models.load("ant.xml", timestep_s=_TIMESTEP_S)
    for geom in spec.body("torso").find_all(mujoco.mjtObj.mjOBJ_GEOM):
        geom.density = density
    return spec
