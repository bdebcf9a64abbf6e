"""The robots' steps in MJX, in short windows that begin in states that MuJoCo's own C engine was in."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from training.envs.core.goal_env import GoalEnv, State

LENGTH = 4  # control steps of the longest window, unless another is asked for


class Errors(NamedTuple):
    """The largest difference from C by window, [steps, LENGTH]: column k is after k + 1 control steps of MJX's own.

    Not a number where C began anew in between. `of` tells those of windows without and with any constraint on the way.
    """

    position: np.ndarray  # m or rad
    velocity: np.ndarray  # m/s or rad/s
    free: np.ndarray  # whether C met no contact and no limit of a joint within the window

    def of(self, *, free: bool, share: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """What `share` of those windows stay below, by length: positions [LENGTH], velocities [LENGTH]."""
        chosen = (self.free == free) & ~np.isnan(self.position)
        assert chosen.sum(axis=0).min() >= 5, "too few windows to tell"
        position, velocity = (np.where(chosen, error, np.nan) for error in (self.position, self.velocity))
        return np.nanquantile(position, share, axis=0), np.nanquantile(velocity, share, axis=0)


@dataclasses.dataclass(frozen=True)
class Rollout:
    """What C did, one control step after another: where each began, where it ended, what it met."""

    actions: np.ndarray  # [steps, action_dim]
    arrays: dict[str, np.ndarray]  # qpos, qvel and qacc_warmstart before each step
    reached: np.ndarray  # [steps, nq + nv] after it
    constraints: np.ndarray  # [steps] rows of constraints met on the way, limits of joints among them
    contacts: tuple[frozenset[tuple[str, ...]], ...]  # [steps] pairs of geoms that touched on the way
    window: int  # C began anew before every step whose number this divides


def roll(env: GoalEnv, actions: np.ndarray, *, window: int, place: Callable[[mujoco.MjData, int], None]) -> Rollout:
    """Let C take `actions: [steps, action_dim]`, in windows that begin where `place` puts the robot.

    Args:
        place: writes positions and velocities into data that have just been reset; told the number of the step.
    """
    data = mujoco.MjData(env.model)
    controls = np.asarray(jax.vmap(env.control)(jnp.asarray(actions)), np.float64)
    before: dict[str, list[np.ndarray]] = {"qpos": [], "qvel": [], "qacc_warmstart": []}
    reached: list[np.ndarray] = []
    constraints = np.zeros(len(actions), int)
    contacts: list[frozenset[tuple[str, ...]]] = []
    for index, control in enumerate(controls):
        if index % window == 0:
            mujoco.mj_resetData(env.model, data)
            place(data, index)
        for name, column in before.items():
            column.append(getattr(data, name).copy())
        data.ctrl[:] = control
        met: set[tuple[str, ...]] = set()
        for _ in range(env.substeps):
            mujoco.mj_step(env.model, data)
            constraints[index] += data.nefc
            met |= touching(env, data)
        contacts.append(frozenset(met))
        reached.append(np.concatenate([data.qpos, data.qvel]))
    arrays = {name: np.array(column) for name, column in before.items()}
    return Rollout(actions, arrays, np.array(reached), constraints, tuple(contacts), window)


def random_actions(env: GoalEnv, *, steps: int, window: int) -> np.ndarray:
    """Random actions [steps, action_dim], in every other window so weak that limits of joints are seldom met."""
    weak = np.arange(steps) // window % 2 == 1
    return np.random.default_rng(0).uniform(-1, 1, (steps, env.action_size)) * np.where(weak, 0.1, 1)[:, None]


def touching(env: GoalEnv, data: mujoco.MjData) -> set[tuple[str, ...]]:
    """The pairs of geoms in contact, each pair's names in order."""
    return {tuple(sorted(env.model.geom(geom).name for geom in contact.geom)) for contact in data.contact}


def window_errors(env: GoalEnv, starts: State, truth: Rollout, *, length: int = LENGTH) -> Errors:
    """Begin in MJX where every step of C's rollout began, take up to `length` of its actions, and compare.

    Args:
        starts: as many robots as steps, of which everything but positions and velocities is kept.
    """
    steps = len(truth.actions)
    follow = np.minimum(np.arange(steps)[:, None] + np.arange(length), steps - 1)  # which steps a window takes
    whole = (np.arange(steps)[:, None] % truth.window + np.arange(length)) < truth.window
    whole &= np.arange(steps)[:, None] + np.arange(length) < steps
    physics: Any = starts.pipeline_state
    arrays = {name: jnp.asarray(array, jnp.float32) for name, array in truth.arrays.items()}
    before = starts.replace(pipeline_state=physics.replace(**arrays))

    def window(robot: State, actions: jax.Array) -> jax.Array:
        def step(now: State, action: jax.Array) -> tuple[State, jax.Array]:
            after = env.step(now, action)
            reached: Any = after.pipeline_state
            return after, jnp.concatenate([reached.qpos, reached.qvel])

        return jax.lax.scan(step, robot, actions)[1]

    reached = jax.jit(jax.vmap(window))(before, jnp.asarray(truth.actions[follow], jnp.float32))
    error = np.where(whole[:, :, None], np.abs(np.asarray(reached) - truth.reached[follow]), np.nan)
    joints = env.model.nq
    free = np.cumsum(truth.constraints[follow], axis=1) == 0
    return Errors(error[:, :, :joints].max(axis=2), error[:, :, joints:].max(axis=2), free)
