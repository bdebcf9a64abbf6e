"""The robots' one step in MJX, from states that MuJoCo's own C engine was in."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from training.envs.base import GoalEnv, State


class Moments(NamedTuple):
    """What C started each control step from."""

    qpos: list[np.ndarray]
    qvel: list[np.ndarray]
    qacc_warmstart: list[np.ndarray]

    def note(self, data: mujoco.MjData) -> None:
        """Keep where `data` is now."""
        self.qpos.append(data.qpos.copy())
        self.qvel.append(data.qvel.copy())
        self.qacc_warmstart.append(data.qacc_warmstart.copy())


class Errors(NamedTuple):
    """The largest difference from C in each step, [steps]."""

    position: np.ndarray  # m or rad
    velocity: np.ndarray  # m/s or rad/s


def step_errors(
    env: GoalEnv, starts: State, moments: Moments, *, actions: np.ndarray, truth: list[np.ndarray]
) -> Errors:
    """Take one control step in MJX from every one of `moments` and compare with `truth`, C's positions and velocities.

    Args:
        starts: as many robots, of which everything but positions and velocities is kept.
    """
    arrays = {name: jnp.asarray(np.array(column), jnp.float32) for name, column in moments._asdict().items()}
    physics: Any = starts.pipeline_state
    before = starts.replace(pipeline_state=physics.replace(**arrays))
    after = jax.jit(jax.vmap(env.step))(before, jnp.asarray(actions, jnp.float32))
    moved: Any = after.pipeline_state
    error = np.abs(np.concatenate([moved.qpos, moved.qvel], axis=1) - np.array(truth))
    joints = env.model.nq
    return Errors(error[:, :joints].max(axis=1), error[:, joints:].max(axis=1))
