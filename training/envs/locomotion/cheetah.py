"""The half-cheetah: a planar runner on two legs, on MuJoCo dynamics.

The robot is brax's model file. A control step is five physics steps of 0.01 s. Head, thighs and feet collide with the
floor.
"""

# MuJoCo is compiled and ships no type information.
# pyright: reportAttributeAccessIssue=false

import jax
import jax.numpy as jnp
import mujoco
from mujoco import mjx

from training.envs.building import brax_models
from training.envs.core.goal_env import EnvSpec, GoalEnv
from training.envs.core.physics import WarpSizes

EPISODE_LENGTH = 1000
GOAL_M = 5.0
_TIMESTEP_S = 0.01
_SUBSTEPS = 5
_MASS_KG = 14.0
_START_NOISE = 0.1  # uniform for positions, standard deviation for velocities


class Cheetah(GoalEnv):
    """Run to x = 5 m and stay there.

    State: all positions, then all velocities. Goal: the torso's x.
    """

    warp_sizes = WarpSizes(contacts=16, rows=56)  # enough for all parts that can touch the floor

    def __init__(self, name: str, *, impl: str = "jax") -> None:
        model = build_model()
        joints = [model.joint(index).name for index in range(model.njnt)]
        units = ["m", "m", *("rad" for _ in joints[2:])]
        env_spec = EnvSpec(
            name=name,
            state_names=(
                *(f"{joint} [{unit}]" for joint, unit in zip(joints, units, strict=True)),
                *(f"{joint} rate [{unit}/s]" for joint, unit in zip(joints, units, strict=True)),
            ),
            goal_names=("x [m]",),
            action_names=tuple(f"{model.actuator(index).name} [N m]" for index in range(model.nu)),
            success_radius=0.5,
            episode_length=EPISODE_LENGTH,
        )
        super().__init__(env_spec, model, substeps=_SUBSTEPS, impl=impl)

    def sample_start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Standing, with noise on all positions and velocities."""
        position_key, velocity_key = jax.random.split(key)
        qpos = jax.random.uniform(position_key, (self.model.nq,), minval=-_START_NOISE, maxval=_START_NOISE)
        return qpos, _START_NOISE * jax.random.normal(velocity_key, (self.model.nv,))

    def sample_goal(self, key: jax.Array) -> jax.Array:
        """Always x = 5 m."""
        del key
        return jnp.array([GOAL_M])

    def sense(self, data: mjx.Data) -> jax.Array:
        """All positions, then all velocities."""
        return jnp.concatenate([data.qpos, data.qvel])

    def achieved_goal(self, state: jax.Array) -> jax.Array:
        """The torso's x."""
        return state[..., :1]


def build_model() -> mujoco.MjModel:
    """Return the runner, with the total mass that its file asks for."""
    spec = brax_models.load("half_cheetah.xml", timestep_s=_TIMESTEP_S, iterations=4, ls_iterations=8)
    spec.compiler.settotalmass = -1  # set below instead: the MJCF compiler setting is lost in MjSpec
    model = spec.compile()
    mujoco.mj_setTotalmass(model, _MASS_KG)
    mujoco.mj_setConst(model, mujoco.MjData(model))
    return model
