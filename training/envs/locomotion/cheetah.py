"""The half-cheetah: a planar runner on two legs, on MuJoCo dynamics.

The robot is the one of the model file that brax ships. A control step is five physics steps of 0.01 s. Head, thighs and
feet meet the floor.
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
    """Run to x = 5 m, and stay.

    State: every position, then every velocity. Goal: the torso's x.
    """

    warp_sizes = WarpSizes(contacts=16, rows=56)  # with all that may touch on the floor

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
        """Standing, everything a little off."""
        position_key, velocity_key = jax.random.split(key)
        qpos = jax.random.uniform(position_key, (self.model.nq,), minval=-_START_NOISE, maxval=_START_NOISE)
        return qpos, _START_NOISE * jax.random.normal(velocity_key, (self.model.nv,))

    def sample_goal(self, key: jax.Array) -> jax.Array:
        """Always the same."""
        del key
        return jnp.array([GOAL_M])

    def sense(self, data: mjx.Data) -> jax.Array:
        """Every position, then every velocity."""
        return jnp.concatenate([data.qpos, data.qvel])

    def achieved_goal(self, state: jax.Array) -> jax.Array:
        """How far the torso has come."""
        return state[..., :1]


def build_model() -> mujoco.MjModel:
    """The runner, its whole mass as its file asks for."""
    spec = brax_models.load("half_cheetah.xml", timestep_s=_TIMESTEP_S, iterations=4, ls_iterations=8)
    spec.compiler.settotalmass = -1  # not asked of the compiler, which is about to forget this setting
    model = spec.compile()
    mujoco.mj_setTotalmass(model, _MASS_KG)
    mujoco.mj_setConst(model, mujoco.MjData(model))
    return model
