"""A fleet of simulated robots, each with its own client, all on one clock.

Every control period each robot sends its own `Act`, and the physics advances when all have their action or have given
up on it: a robot whose answer does not come coasts for that period with the middle of its action range, and the tick
counts as missed. Nothing is sent again.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from kilolayer import Action, DeadlineExceeded, Overloaded, PolicyClient
from training.envs.core.goal_env import GoalEnv, State


class Tick(NamedTuple):
    """One robot's request as it saw it."""

    round_trip_s: float
    batch_rows: int  # rows that the server computed together with this one


class Episode(NamedTuple):
    """One robot's way to one goal."""

    goal: np.ndarray  # [goal_dim]
    path: np.ndarray  # [steps + 1, goal_dim], achieved goals, the start's first
    time_at_goal: int  # control steps within the success radius
    ticks: tuple[Tick, ...]  # the requests that were answered
    missed: int  # the requests that were not
    poses: np.ndarray | None = None  # [steps + 1, nq], joint positions as MuJoCo orders them; only where asked for

    @property
    def reached(self) -> bool:
        """Whether the robot was at its goal at least once."""
        return self.time_at_goal > 0


class Pilot(Protocol):
    """What a robot needs of a client."""

    def act(self, state: np.ndarray, goal: np.ndarray) -> Action:
        """The action for one row, `state: [state_dim]` and `goal: [goal_dim]`."""
        ...


def drive(
    env: GoalEnv,
    pilots: Sequence[Pilot],
    *,
    key: jax.Array,
    episodes: int,
    episode_length: int,
    keep_poses: bool = False,
    on_step: Callable[[int], None] = lambda _: None,
) -> Iterator[Episode]:
    """Drive `episodes` episodes, as many at once as there are pilots; yield each when its round ends.

    Args:
        episode_length: control steps; an episode that terminates earlier stands still from then on.
        keep_poses: whether the first episode keeps its joint positions, up to its end, for pictures.
        on_step: told after every control period how many robots moved.

    Raises:
        KilolayerError: the server refused or is gone; a late or shed answer is not raised but counted as missed.
        PhysicsOverflowError: Warp has no room for the robots' contacts.
    """
    reset = jax.jit(jax.vmap(env.reset))
    step = jax.jit(jax.vmap(env.step))
    achieved = jax.jit(env.achieved_goal)
    with ThreadPoolExecutor(len(pilots), thread_name_prefix="robot") as pool:
        for first in range(0, episodes, len(pilots)):
            key, round_key = jax.random.split(key)
            current = reset(jax.random.split(round_key, len(pilots)))
            active = min(len(pilots), episodes - first)
            goals = np.asarray(current.info["goal"])
            paths = [np.asarray(achieved(current.info["state"]))]
            poses = [_pose(current)] if keep_poses and first == 0 else None
            at_goal, alive = np.zeros(len(pilots), int), np.ones(len(pilots), bool)
            answers: list[list[Action | None]] = [[] for _ in range(active)]
            for _ in range(episode_length):
                states = np.asarray(current.info["state"])[:active]
                asked = np.asarray(current.info["goal"])[:active]  # a goal may move
                replies = list(pool.map(_ask, pilots[:active], states, asked))
                for robot, reply in enumerate(replies):
                    answers[robot].append(reply)
                current = step(current, jnp.asarray(_actions(replies, rows=len(pilots), action_size=env.action_size)))
                paths.append(np.where(alive[:, None], np.asarray(achieved(current.info["state"])), paths[-1]))
                if poses is not None and alive[0]:
                    poses.append(_pose(current))
                at_goal += alive & (np.asarray(current.metrics["success"]) > 0)
                alive &= np.asarray(current.done) == 0
                on_step(active)
            env.require_no_overflow(env.overflow(current))
            path = np.stack(paths, axis=1)
            for robot in range(active):
                episode = _episode(goals[robot], path[robot], time_at_goal=int(at_goal[robot]), answers=answers[robot])
                yield episode if poses is None or robot else episode._replace(poses=np.stack(poses))


def connect(address: str, *, robots: int, policy: str, timeout_s: float) -> list[PolicyClient]:
    """One client per robot, as if each were a machine of its own."""
    return [PolicyClient(address, policy=policy, timeout_s=timeout_s) for _ in range(robots)]


def _pose(current: State) -> np.ndarray:
    """The first robot's joint positions, [nq]."""
    physics: Any = current.pipeline_state
    return np.array(physics.qpos[0])


def _ask(pilot: Pilot, state: np.ndarray, goal: np.ndarray) -> Action | None:
    """One robot's action for this tick, or None if it came too late to be of use."""
    try:
        return pilot.act(state, goal)
    except (DeadlineExceeded, Overloaded):
        return None


def _actions(replies: Sequence[Action | None], *, rows: int, action_size: int) -> np.ndarray:
    """The actions as one block [rows, action_size]; the middle of the range where there is no answer or no request."""
    actions = np.zeros((rows, action_size), np.float32)
    for robot, reply in enumerate(replies):
        if reply is not None:
            actions[robot] = reply.action
    return actions


def _episode(goal: np.ndarray, path: np.ndarray, *, time_at_goal: int, answers: Sequence[Action | None]) -> Episode:
    ticks = tuple(Tick(answer.round_trip_s, answer.batch_rows) for answer in answers if answer is not None)
    return Episode(goal, path, time_at_goal=time_at_goal, ticks=ticks, missed=len(answers) - len(ticks))
