"""An environment as small as MuJoCo allows: compiled at once, and every step of it worked out by hand."""

# pyright: reportAttributeAccessIssue=false

import jax
import jax.numpy as jnp
import mujoco
from mujoco import mjx

from training.envs.core.goal_env import EnvSpec, GoalEnv


class Cart(GoalEnv):
    """A mass of 1 kg on a slide, pushed by up to 1 N, 0.1 s at a time; beyond 0.12 m an episode ends."""

    def __init__(self, name: str, *, impl: str = "jax") -> None:
        spec = mujoco.MjSpec()
        spec.option.timestep = 0.1
        body = spec.worldbody.add_body()
        body.add_joint(name="x", type=mujoco.mjtJoint.mjJNT_SLIDE, axis=[1, 0, 0])
        body.add_geom(size=[0.1, 0, 0], mass=1, contype=0, conaffinity=0)
        motor = spec.add_actuator(target="x", trntype=mujoco.mjtTrn.mjTRN_JOINT)
        motor.ctrlrange, motor.ctrllimited = [-1, 1], True
        env_spec = EnvSpec(
            name=name,
            state_names=("x [m]", "vx [m/s]"),
            goal_names=("x [m]",),
            action_names=("force [N]",),
            success_radius=0.02,
            episode_length=6,
        )
        super().__init__(env_spec, spec.compile(), substeps=1, impl=impl)

    def sample_start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.zeros(1), jnp.zeros(1)

    def sample_goal(self, key: jax.Array) -> jax.Array:
        return jnp.array([0.07])

    def sense(self, data: mjx.Data) -> jax.Array:
        return jnp.concatenate([data.qpos, data.qvel])

    def achieved_goal(self, state: jax.Array) -> jax.Array:
        return state[..., :1]

    def terminated(self, state: jax.Array) -> jax.Array:
        return state[..., 0] > 0.12
