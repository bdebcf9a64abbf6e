"""Simulated robots, each with its own client, on one simulated clock.

In every control period each robot sends its own `Act` request. The physics advances when every request has its reply or
has failed. A robot without a reply in time applies the middle of its action range for that period, and the request
counts as missed. No request is sent again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from kilolayer import Action, DeadlineExceeded, Overloaded, PolicyClient
from training.envs.core.goal_env import GoalEnv, State
from training.envs.core.goal_record import GoalRecord


class Tick(NamedTuple):
    """One control step of one robot whose request was answered."""

    round_trip_s: float
    batch_rows: int  # rows that the server computed together, including this one


class Episode(NamedTuple):
    """One robot's attempt to reach one goal."""

    goal: np.ndarray  # [goal_dim]
    path: np.ndarray  # [steps + 1, goal_dim], achieved goals, beginning with that of the start
    time_at_goal: int  # control steps within the success radius
    stay: float  # share of the time since the first arrival spent at the goal, see `GoalRecord.stay`
    ticks: tuple[Tick, ...]  # of the requests that were answered
    missed: int  # number of requests without a reply in time
    diverged: bool = False  # whether its simulated world did; then the goal counts as not reached
    poses: np.ndarray | None = None  # [steps + 1, nq], joint positions in MuJoCo's order; only if kept

    @property
    def touched(self) -> bool:
        """Whether the robot was within the success radius in at least one step."""
        return self.time_at_goal > 0


class ActClient(Protocol):
    """The part of a client that a robot uses."""

    def act(self, state: np.ndarray, goal: np.ndarray) -> Action:
        """Return the action for one row, `state: [state_dim]` and `goal: [goal_dim]`."""
        ...


def drive(
    env: GoalEnv,
    clients: Sequence[ActClient],
    *,
    key: jax.Array,
    episodes: int,
    episode_length: int,
    keep_poses: bool = False,
    on_step: Callable[[int], None] = lambda _: None,
) -> Iterator[Episode]:
    """Run `episodes` episodes, as many at the same time as there are clients; yield each when its round ends.

    An episode counts until its first termination, as in training's evaluations. A robot whose state is NaN or infinite
    sends no more requests.

    Args:
        episode_length: control steps; the path of an episode that terminates earlier stays where it ended.
        keep_poses: whether the first episode keeps its joint positions until it terminates, for pictures.
        on_step: called after every control period with the number of robots that moved.

    Raises:
        KilolayerError: the server refused a request or is gone. A late or rejected request counts as missed instead.
        PhysicsOverflowError: MuJoCo Warp has no room for the robots' contacts.
    """
    reset = jax.jit(jax.vmap(env.reset))
    step = jax.jit(jax.vmap(env.step))
    achieved = jax.jit(env.achieved_goal)
    with ThreadPoolExecutor(len(clients), thread_name_prefix="robot") as pool:
        for first in range(0, episodes, len(clients)):
            key, round_key = jax.random.split(key)
            current = reset(jax.random.split(round_key, len(clients)))
            active = min(len(clients), episodes - first)
            goals = np.asarray(current.info["goal"])
            paths = [np.asarray(achieved(current.info["state"]))]
            poses = [_pose(current)] if keep_poses and first == 0 else None
            record = GoalRecord.begin(np.zeros(len(clients), np.int32))
            replies: list[list[Action | None]] = [[] for _ in range(active)]
            for number in range(1, episode_length + 1):
                states = np.asarray(current.info["state"])[:active]
                current_goals = np.asarray(current.info["goal"])[:active]  # a goal may move
                asking = np.flatnonzero(np.isfinite(states).all(axis=1)).tolist()
                asked = (clients[robot] for robot in asking)
                step_replies = dict(
                    zip(asking, pool.map(_act, asked, states[asking], current_goals[asking]), strict=True)
                )
                for robot, reply in step_replies.items():
                    replies[robot].append(reply)
                actions = _actions(step_replies, rows=len(clients), action_size=env.action_size)
                current = step(current, jnp.asarray(actions))
                finite = _finite(current)
                counted = record.alive & finite
                paths.append(np.where(counted[:, None], np.asarray(achieved(current.info["state"])), paths[-1]))
                if poses is not None and counted[0]:
                    poses.append(_pose(current))
                at_goal, done = np.asarray(current.metrics["success"]) > 0, np.asarray(current.done) > 0
                record = record.after(number, at_goal=at_goal, done=done, finite=finite)
                on_step(active)
            env.require_no_overflow(env.overflow(current))
            path, stay = np.stack(paths, axis=1), np.asarray(record.stay(episode_length))
            for robot in range(active):
                ticks = tuple(
                    Tick(reply.round_trip_s, reply.batch_rows) for reply in replies[robot] if reply is not None
                )
                yield Episode(
                    goals[robot],
                    path[robot],
                    time_at_goal=int(record.time_at_goal[robot]),
                    stay=float(stay[robot]),
                    ticks=ticks,
                    missed=len(replies[robot]) - len(ticks),
                    diverged=bool(record.diverged[robot]),
                    poses=None if poses is None or robot else np.stack(poses),
                )


def connect(address: str, *, robots: int, policy: str, timeout_s: float) -> list[PolicyClient]:
    """Return one client per robot, as if each robot were a machine of its own."""
    return [PolicyClient(address, policy=policy, timeout_s=timeout_s) for _ in range(robots)]


def _pose(current: State) -> np.ndarray:
    """Return the first robot's joint positions, [nq]."""
    physics: Any = current.pipeline_state
    return np.array(physics.qpos[0])


def _finite(current: State) -> np.ndarray:
    """Return for each robot whether its state and its distance to the goal are finite, [robots]."""
    return np.isfinite(np.asarray(current.info["state"])).all(axis=1) & np.isfinite(current.metrics["distance"])


def _act(client: ActClient, state: np.ndarray, goal: np.ndarray) -> Action | None:
    """Return one robot's action for this control step, or None if the request was late or rejected."""
    try:
        return client.act(state, goal)
    except (DeadlineExceeded, Overloaded):
        return None


def _actions(replies: Mapping[int, Action | None], *, rows: int, action_size: int) -> np.ndarray:
    """Return the actions as one block [rows, action_size]: 0, the middle of the range, for a row without a reply."""
    actions = np.zeros((rows, action_size), np.float32)
    for robot, reply in replies.items():
        if reply is not None:
            actions[robot] = reply.action
    return actions
