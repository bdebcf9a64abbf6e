"""A video of the first episode of an evaluation."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from policy import acting
from policy.bits import in_32_bits
from policy.networks import PolicyParams
from training.envs.core.goal_env import GoalEnv, State
from training.envs.rendering.camera import Camera
from training.envs.rendering.video import frames_per_s, write_video


def write(
    path: Path,
    env: GoalEnv,
    params: PolicyParams,
    *,
    key: jax.Array,
    episodes: int,
    episode_length: int,
    goal: np.ndarray | None = None,
) -> None:
    """Run the first episode of `training.evaluation.evaluate` alone, and write it as an MP4 file.

    Alone, the episode is rounded differently than among others, so it may end at a slightly different place.

    Args:
        key, episodes, episode_length: of the evaluation.
        goal: [goal_dim], of the first episode; None: the drawn one.

    Raises:
        CannotDrawError: this machine cannot draw pictures.
        OSError: the file cannot be written.
    """
    poses, goals = first_episode(env, params, key=key, episodes=episodes, episode_length=episode_length, goal=goal)
    path.parent.mkdir(parents=True, exist_ok=True)
    rate_hz, stride = frames_per_s(env.control_period_s)
    with Camera(env) as camera:
        frames = (camera.picture(*each) for each in zip(poses[::stride], goals[::stride], strict=True))
        write_video(path, frames, rate_hz=rate_hz)


@in_32_bits
def first_episode(
    env: GoalEnv,
    params: PolicyParams,
    *,
    key: jax.Array,
    episodes: int,
    episode_length: int,
    goal: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the poses [steps + 1, nq] and the goals [steps + 1, goal_dim] of the first episode, until it ends."""

    def run(params: PolicyParams, first_key: jax.Array) -> Any:
        start = jax.vmap(env.reset)(first_key[None])
        if goal is not None:
            start = jax.vmap(env.with_goal)(start, jnp.asarray(goal, jnp.float32)[None])

        def one_step(before: State, _: None) -> tuple[State, Any]:
            after = jax.vmap(env.step)(before, acting.act(params, before.info["state"], before.info["goal"]))
            ended = (after.done > 0) | (jax.vmap(env.diverged_part)(after) >= 0)
            return after, (_pose(after), after.info["goal"], ended)

        _, (poses, goals, ended) = jax.lax.scan(one_step, start, length=episode_length)
        return _pose(start)[0], start.info["goal"][0], poses[:, 0], goals[:, 0], ended[:, 0]

    first_pose, first_goal, poses, goals, ended = map(
        np.asarray, jax.jit(run)(params, jax.random.split(key, episodes)[0])
    )
    steps = int(np.argmax(ended)) + 1 if ended.any() else episode_length
    if not np.isfinite(poses[steps - 1]).all():  # where the world diverged
        steps -= 1
    return (
        np.concatenate([first_pose[None], poses[:steps]]),
        np.concatenate([first_goal[None], goals[:steps]]),
    )


def _pose(state: State) -> jax.Array:
    """Return the joint positions, [1, nq]."""
    physics: Any = state.pipeline_state
    return physics.qpos
