"""The humanoid: eleven links and seventeen hinges on two feet, on MuJoCo dynamics.

The robot is brax's model file, with its torques (gear times control range: 40 N m, 120 at the hips' y, 80 at the knees,
10 in the arms). Only the feet collide with the floor, because an episode ends before anything else could touch it. A
control step is six physics steps of 0.005 s.
"""

# MuJoCo is compiled and ships no type information.
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

import jax
import jax.numpy as jnp
import mujoco
from mujoco import mjx

from training.envs.building import brax_models, scenery
from training.envs.core import kinematics
from training.envs.core.goal_env import EnvSpec, GoalEnv
from training.envs.core.physics import WarpSizes

EPISODE_LENGTH = 1000
GOAL_HEIGHT_M = 1.25
FEET = ("right_foot", "left_foot")
_GOAL_DISTANCE_M = (1.0, 5.0)
_HEALTHY_HEIGHT_M = (1.0, 2.0)
_TIMESTEP_S = 0.005
_SUBSTEPS = 6

_INERTIA_NAMES = (
    *(f"inertia {axes} [kg m^2]" for axes in ("xx", "yy", "zz", "xy", "xz", "yz")),
    *(f"mass times offset {axis} [kg m]" for axis in "xyz"),
    "mass [kg]",
)
_VELOCITY_NAMES = (*(f"w{axis} [rad/s]" for axis in "xyz"), *(f"v{axis} [m/s]" for axis in "xyz"))


class Humanoid(GoalEnv):
    """Walk to a point 1 to 5 m from the start, and stand there.

    State: 246 values as in Gymnasium's Humanoid. Torso position and quaternion, joint angles, and their velocities; for
    each of the eleven links its inertia about the whole body's center of mass (MuJoCo's `cinert`) and its velocity
    (`cvel`); the torque on every degree of freedom. Goal: the torso's position, height included.
    """

    warp_sizes = WarpSizes(contacts=8, rows=40)

    def __init__(
        self, name: str, *, impl: str = "jax", model: mujoco.MjModel | None = None, substeps: int = _SUBSTEPS
    ) -> None:
        model = humanoid_spec().compile() if model is None else model
        super().__init__(_env_spec(name, model), model, substeps=substeps, impl=impl)
        self._body_velocities = kinematics.BodyVelocities(model)

    def sample_start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Upright above the origin, at rest, without noise."""
        del key
        return jnp.asarray(self.model.qpos0, jnp.float32), jnp.zeros(self.model.nv)

    def sample_goal(self, key: jax.Array) -> jax.Array:
        """A uniformly random direction and distance, from 1 to 5 m."""
        angle_key, distance_key = jax.random.split(key)
        angle = jax.random.uniform(angle_key, maxval=2 * jnp.pi)
        nearest, farthest = _GOAL_DISTANCE_M
        distance = jax.random.uniform(distance_key, minval=nearest, maxval=farthest)
        return jnp.stack([distance * jnp.cos(angle), distance * jnp.sin(angle), jnp.asarray(GOAL_HEIGHT_M)])

    def sense(self, data: mjx.Data) -> jax.Array:
        """Positions, velocities, each link's inertia, each link's velocity, torques."""
        current = kinematics.update_poses(self._mjx_model, data)
        links = (
            kinematics.inertias(self.model, current)[1:],
            self._body_velocities.velocities(current)[1:],
        )  # without the world
        return jnp.concatenate([data.qpos, data.qvel, *(link.reshape(-1) for link in links), data.qfrc_actuator])

    def achieved_goal(self, state: jax.Array) -> jax.Array:
        """The torso's position."""
        return state[..., :3]

    def terminated(self, state: jax.Array) -> jax.Array:
        """True when the torso is too low or too high for standing."""
        low, high = _HEALTHY_HEIGHT_M
        return (state[..., 2] < low) | (state[..., 2] > high)


def _env_spec(name: str, model: mujoco.MjModel) -> EnvSpec:
    joints = [model.joint(index).name for index in range(1, model.njnt)]  # without the torso's free joint
    links = [model.body(index).name for index in range(1, model.nbody)]
    return EnvSpec(
        name=name,
        state_names=(
            *(f"{axis} [m]" for axis in "xyz"),
            *(f"quaternion {part}" for part in "wxyz"),
            *(f"{joint} [rad]" for joint in joints),
            *(f"v{axis} [m/s]" for axis in "xyz"),
            *(f"w{axis} [rad/s]" for axis in "xyz"),
            *(f"{joint} rate [rad/s]" for joint in joints),
            *(f"{link} {value}" for link in links for value in _INERTIA_NAMES),
            *(f"{link} {value}" for link in links for value in _VELOCITY_NAMES),
            *(f"force {axis} [N]" for axis in "xyz"),
            *(f"torque {axis} [N m]" for axis in "xyz"),
            *(f"{joint} torque [N m]" for joint in joints),
        ),
        goal_names=("x [m]", "y [m]", "z [m]"),
        action_names=tuple(f"{model.actuator(index).name} [N m]" for index in range(model.nu)),
        success_radius=0.5,
        episode_length=EPISODE_LENGTH,
        state_quaternions=(3,),  # the torso's, after its position
    )


def humanoid_spec() -> mujoco.MjSpec:
    """Return the humanoid on an infinite floor, with actuators in N m, to compile or add to."""
    spec = brax_models.load("humanoid.xml", timestep_s=_TIMESTEP_S)
    for foot in FEET:  # a foot is fixed to its shin, so it becomes part of it
        body = spec.body(foot)
        drawn = spec.geom(foot)
        radius, place = drawn.size[0], body.pos + drawn.pos
        shin = body.parent
        spec.delete(body)
        shin.add_geom(name=foot, type=mujoco.mjtGeom.mjGEOM_SPHERE, size=[radius, 0, 0], pos=place, contype=1)
    scenery.paint(spec.body("torso"))
    return spec
