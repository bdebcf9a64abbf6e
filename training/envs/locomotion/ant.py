"""The ant: a torso on four legs of two joints each, on MuJoCo dynamics.

The robot is the one of the model file that brax ships, ten times as dense: 9.1 kg, as much as the published ant, whose
nine links count as 1 kg each. With the file's 0.9 kg, torques of up to 150 N m throw it off its feet. A control step is
five physics steps of 0.01 s, and only what can matter collides: the feet with the floor.
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
NQ, NV = 15, 14  # positions and velocities of the ant alone, which come first
FEET = ("left_foot_geom", "right_foot_geom", "third_foot_geom", "fourth_foot_geom")
_TIMESTEP_S = 0.01
_SUBSTEPS = 5
_DENSITY = 50.0  # kg/m^3: ten times the file's
_HEALTHY_HEIGHT_M = (0.2, 1.0)
START_HEIGHT_M = 0.55
_START = (0.0, 0.0, START_HEIGHT_M, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0, -1.0, 0.0, 1.0)
_START_NOISE = 0.1  # uniform for positions, standard deviation for velocities
_QUATERNION = slice(3, 7)


class Ant(GoalEnv):
    """Walk to a point on a circle of 10 m around the start.

    State: torso position and quaternion, joint angles; the velocities of the same. Goal: where the torso shall be.
    """

    warp_sizes = WarpSizes(contacts=8, rows=40)

    def __init__(
        self, name: str, *, impl: str = "jax", model: mujoco.MjModel | None = None, sensed_too: tuple[str, ...] = ()
    ) -> None:
        model = ant_spec().compile() if model is None else model
        joints = [model.joint(index).name for index in range(1, 1 + model.nu)]  # the torso's free one comes before
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
                *sensed_too,
            ),
            goal_names=("x [m]", "y [m]"),
            action_names=tuple(f"{motor} [N m]" for motor in motors),
            success_radius=0.5,
            episode_length=EPISODE_LENGTH,
        )
        super().__init__(env_spec, model, substeps=_SUBSTEPS, impl=impl)

    def sample_start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Standing, everything a little off."""
        position_key, velocity_key = jax.random.split(key)
        noise = jax.random.uniform(position_key, (NQ,), minval=-_START_NOISE, maxval=_START_NOISE)
        qpos = jnp.asarray(_START) + noise
        quaternion = qpos[_QUATERNION]
        qpos = qpos.at[_QUATERNION].set(quaternion / jnp.linalg.norm(quaternion))
        return qpos, _START_NOISE * jax.random.normal(velocity_key, (NV,))

    def sample_goal(self, key: jax.Array) -> jax.Array:
        """On the circle, in any direction."""
        angle = jax.random.uniform(key, maxval=2 * jnp.pi)
        return GOAL_DISTANCE_M * jnp.stack([jnp.cos(angle), jnp.sin(angle)])

    def sense(self, data: mjx.Data) -> jax.Array:
        """Every position of the ant, then every velocity."""
        return jnp.concatenate([data.qpos[:NQ], data.qvel[:NV]])

    def achieved_goal(self, state: jax.Array) -> jax.Array:
        """The torso's place on the floor."""
        return state[..., :2]

    def terminated(self, state: jax.Array) -> jax.Array:
        """Once the torso is too low or too high to be walking."""
        low, high = _HEALTHY_HEIGHT_M
        return (state[..., 2] < low) | (state[..., 2] > high)


def ant_spec() -> mujoco.MjSpec:
    """The ant on an endless floor, its actuators in N m, to be compiled or added to."""
    spec = brax_models.load("ant.xml", timestep_s=_TIMESTEP_S)
    for geom in spec.body("torso").find_all(mujoco.mjtObj.mjOBJ_GEOM):
        geom.density = _DENSITY
    return spec
