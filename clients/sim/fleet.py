"""Simulated robots, each with its own client, on one simulated clock.

Each robot sends its own `Act` request, executes all actions of the reply, one per control period, and then sends the
next request. If the policy's action_chunk is 1, a robot sends a request in every control period. The physics advances
when every request has its reply or has failed. A robot without a reply in time applies the middle of its action range
for one control period and then sends a new request; the first one counts as missed and is not sent again. If the server
restarts or hangs, the robots go on in this way until it answers again. Requests to a server that is gone fail
immediately, so each control period then takes its real time. After its episode, a robot reports to the server how it
ended.
"""

import functools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from clients.sim.outage import Outage, Reply
from kilolayer import Action, DeadlineExceeded, Overloaded, PolicyClient, ServerError
from training.envs.core.goal_env import GoalEnv, State
from training.envs.core.goal_record import GoalRecord

_REPORT_S = 10.0  # timeout


class Tick(NamedTuple):
    """One request of one robot that was answered."""

    round_trip_s: float
    batch_rows: int  # rows that the server computed together, including this one
    version: str = ""  # that answered
    is_warm_up: bool = False  # the first answer on a connection, whose round trip includes connecting


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
    reached: bool = False  # whether it was within the success radius after the last step that counts
    version: str = ""  # of the policy, that gave the last action; empty if every request was missed

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
    outage: Outage | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Episode]:
    """Run `episodes` episodes, as many at the same time as there are clients; yield each when its round ends.

    An episode counts until its first termination, as in training's evaluations. A robot whose state is NaN or infinite
    sends no more requests.

    Args:
        episode_length: control steps; the path of an episode that terminates earlier stays where it ended.
        keep_poses: whether the first episode keeps its joint positions until it terminates, for pictures.
        on_step: called after every control period with the number of robots that moved.
        outage: says that requests fail. None: one that says nothing.
        sleep: waits for a number of seconds.

    Raises:
        KilolayerError: the server refused a request as wrong. Every other request without a reply counts as missed.
        PhysicsOverflowError: MuJoCo Warp has no room for the robots' contacts.
    """
    reset, step, achieved, diverged_part = _programs(env)
    connected = [False] * len(clients)
    outage = outage or Outage(say=lambda _: None)
    with ThreadPoolExecutor(len(clients), thread_name_prefix="robot") as pool:
        for first in range(0, episodes, len(clients)):
            key, round_key = jax.random.split(key)
            current = reset(jax.random.split(round_key, len(clients)))
            active = min(len(clients), episodes - first)
            goals = np.asarray(current.info["goal"])
            paths = [np.asarray(achieved(current.info["state"]))]
            poses = [_pose(current)] if keep_poses and first == 0 else None
            record, reached = GoalRecord.begin(np.zeros(len(clients), np.int32)), np.zeros(len(clients), bool)
            robots = [_Robot(env.action_size) for _ in range(len(clients))]
            for number in range(1, episode_length + 1):
                outage.after(_ask(pool, clients[:active], robots, connected, current=current))
                if outage.is_on:
                    sleep(env.control_period_s)
                actions = np.stack([robot.next_action() for robot in robots])
                current = step(current, jnp.asarray(actions))
                finite = (np.asarray(diverged_part(current)) < 0) & np.isfinite(current.metrics["distance"])
                counted = record.alive & finite
                paths.append(np.where(counted[:, None], np.asarray(achieved(current.info["state"])), paths[-1]))
                if poses is not None and counted[0]:
                    poses.append(_pose(current))
                at_goal, done = np.asarray(current.metrics["success"]) > 0, np.asarray(current.done) > 0
                record = record.after(number, at_goal=at_goal, done=done, finite=finite)
                reached = np.where(counted, at_goal, reached)
                on_step(active)
            env.require_no_overflow(env.overflow(current))
            path, stay = np.stack(paths, axis=1), np.asarray(record.stay(episode_length))
            for robot in range(active):
                yield Episode(
                    goals[robot],
                    path[robot],
                    time_at_goal=int(record.time_at_goal[robot]),
                    stay=float(stay[robot]),
                    ticks=tuple(robots[robot].ticks),
                    missed=robots[robot].missed,
                    diverged=bool(record.diverged[robot]),
                    poses=None if poses is None or robot else np.stack(poses),
                    reached=bool(reached[robot] and not record.diverged[robot]),
                    version=robots[robot].version,
                )


@functools.lru_cache(maxsize=4)  # the next drive in the same environment compiles nothing
def _programs(env: GoalEnv) -> tuple[Callable[..., Any], ...]:
    """Return the compiled reset, step, achieved goal and diverged part of all robots."""
    reset, step, diverged_part = (jax.jit(jax.vmap(part)) for part in (env.reset, env.step, env.diverged_part))
    return reset, step, jax.jit(env.achieved_goal), diverged_part


def connect(address: str, *, robots: int, policy: str, timeout_s: float) -> list[PolicyClient]:
    """Return one client per robot, as if each robot were a machine of its own."""
    return [
        PolicyClient(address, policy=policy, timeout_s=timeout_s, robot_id=f"sim-{robot}") for robot in range(robots)
    ]


def report(client: PolicyClient, episode: Episode, *, number: int) -> bool:
    """Tell the server how `episode` ended, unless none of its requests was answered.

    Args:
        number: the robot's number for the episode.

    Returns:
        Whether that succeeded: False if the server is gone or did not answer in time.

    Raises:
        KilolayerError: the server refused the report as wrong.
    """
    if not episode.version:
        return True
    try:
        client.report(
            number,
            version=episode.version,
            reached=episode.reached,
            time_at_goal=episode.time_at_goal,
            timeout_s=_REPORT_S,
        )
    except (DeadlineExceeded, ServerError):
        return False
    return True


class _Robot:
    """The actions that one robot still has to execute in its episode, and the record of its requests."""

    def __init__(self, action_size: int) -> None:
        self._rest = np.zeros(action_size, np.float32)  # the middle of the action range
        self._actions: deque[np.ndarray] = deque()
        self.ticks: list[Tick] = []
        self.missed = 0
        self.version = ""  # that gave the last action

    @property
    def has_action(self) -> bool:
        return bool(self._actions)

    def receive(self, reply: Reply, *, is_warm_up: bool) -> None:
        """Execute the actions of `reply` from now on. An error: the request was missed."""
        if isinstance(reply, Action):
            self._actions.extend(reply.chunk)
            self.ticks.append(Tick(reply.round_trip_s, reply.batch_rows, reply.version, is_warm_up))
            self.version = reply.version
        else:
            self.missed += 1

    def next_action(self) -> np.ndarray:
        """Return the action for this control period, [action_size]: the middle of the range if there is none."""
        return self._actions.popleft() if self._actions else self._rest


def _ask(
    pool: ThreadPoolExecutor,
    clients: Sequence[ActClient],
    robots: Sequence[_Robot],
    connected: list[bool],
    *,
    current: State,
) -> list[Reply]:
    """Send the request of every robot that has no action left, wait for the replies and return them.

    A robot whose state is NaN or infinite sends none. `connected` says whether each client is, and is updated.
    """
    states, goals = np.asarray(current.info["state"]), np.asarray(current.info["goal"])  # a goal may move
    finite = np.flatnonzero(np.isfinite(states[: len(clients)]).all(axis=1)).tolist()
    asking = [number for number in finite if not robots[number].has_action]
    replies = list(pool.map(_act, [clients[number] for number in asking], states[asking], goals[asking]))
    for number, reply in zip(asking, replies, strict=True):
        robots[number].receive(reply, is_warm_up=not connected[number])
        if not isinstance(reply, (DeadlineExceeded, Overloaded)):  # which say nothing about the connection
            connected[number] = isinstance(reply, Action)
    return replies


def _pose(current: State) -> np.ndarray:
    """Return the first robot's joint positions, [nq]."""
    physics: Any = current.pipeline_state
    return np.array(physics.qpos[0])


def _act(client: ActClient, state: np.ndarray, goal: np.ndarray) -> Reply:
    """Return the reply to one robot's request, or why there is none. A request that is wrong raises."""
    try:
        return client.act(state, goal)
    except (DeadlineExceeded, ServerError) as error:
        return error
