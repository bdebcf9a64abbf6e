"""Simulated robots with a fake client, and the results of a run worked out by hand."""

import dataclasses
import itertools
from typing import Any, cast

import jax
import numpy as np
import pytest

from clients.sim import fleet, summary
from clients.sim.outage import Outage
from kilolayer import (
    Action,
    DeadlineExceeded,
    InvalidRequest,
    KilolayerError,
    Overloaded,
    PolicyClient,
    ServerFailure,
    Unavailable,
)
from tests.clients.fakes import Pusher, answer
from tests.parameters import fresh_params
from tests.training.cart import Cart
from tests.training.counter import SPEC, Wandering
from training import evaluation
from training.envs import registry
from training.envs.core.goal_env import GoalEnv
from training.envs.locomotion.point_maze import PointMaze


@pytest.fixture(scope="module")
def env() -> GoalEnv:
    return registry.make("point_u_maze")


@pytest.fixture(scope="module")
def cart() -> GoalEnv:
    return Cart("cart")


class Pulse:
    """Gives three actions for one state: push, roll, brake. The requests whose numbers are in `late` get no reply."""

    def __init__(self, *, late: tuple[int, ...] = ()) -> None:
        self.asked: list[float] = []  # positions
        self.late = late

    def act(self, state: np.ndarray, goal: np.ndarray) -> Action:
        self.asked.append(float(state[0]))
        if len(self.asked) in self.late:
            raise DeadlineExceeded("too late", status="DEADLINE_EXCEEDED")
        reply = answer(np.zeros(1, np.float32), batch_rows=1)
        return dataclasses.replace(reply, chunk=np.array([[1], [0], [-1]], np.float32))


def test_every_robot_sends_one_request_per_step_and_applies_the_action(env: GoalEnv) -> None:
    clients = [Pusher(), Pusher(), Pusher()]
    steps: list[int] = []
    drive = fleet.drive(env, clients, key=jax.random.key(0), episodes=5, episode_length=8, on_step=steps.append)
    episodes = list(drive)
    assert len(episodes) == 5
    assert steps == [3] * 8 + [2] * 8
    assert [len(client.asked) for client in clients] == [16, 16, 8]
    for episode in episodes:
        assert episode.path.shape == (9, 2)
        assert np.abs(episode.path[0] - 1).max() <= 0.1
        assert (np.diff(episode.path[:, 1]) > 0).all(), "pushed along +y it moves along +y"
        np.testing.assert_allclose(episode.path[:, 0], episode.path[0, 0], atol=1e-5)
        assert len(episode.ticks) == 8
    assert len({tuple(episode.goal) for episode in episodes}) == 5
    np.testing.assert_array_equal(clients[0].asked[0][1], episodes[0].goal)
    np.testing.assert_allclose(clients[0].asked[1][0][:2], episodes[0].path[1])


def test_a_request_has_the_current_goal_if_goals_move() -> None:
    class Ahead(PointMaze):
        """The goal stays 1 m ahead of the ball."""

        def current_goal(self, state: jax.Array, goal: jax.Array) -> jax.Array:
            return state[:2] + 1

    client = Pusher()
    (episode,) = fleet.drive(Ahead("point_u_maze"), [client], key=jax.random.key(0), episodes=1, episode_length=4)
    asked = [goal for _, goal in client.asked]
    np.testing.assert_allclose(asked, episode.path[:-1] + 1, atol=1e-6)
    assert asked[3][1] > asked[0][1] + 0.05


def test_time_at_goal_is_counted_along_the_path(env: GoalEnv) -> None:
    for episode in fleet.drive(env, [Pusher()] * 3, key=jax.random.key(1), episodes=9, episode_length=40):
        near = np.linalg.norm(episode.path[1:] - episode.goal, axis=1) < 0.3
        assert episode.time_at_goal == near.sum()
        assert episode.touched == near.any()


@pytest.mark.parametrize("beyond", [np.nan, 1e11])  # MuJoCo's limit is 1e10
def test_touched_and_stay_are_those_of_an_evaluation_of_the_same_episodes(beyond: float) -> None:
    env, episodes, length, key = Wandering(), 12, 12, jax.random.key(3)
    env.beyond = beyond
    clients = [Counted() for _ in range(episodes)]
    driven = list(fleet.drive(env, clients, key=key, episodes=episodes, episode_length=length))
    params = fresh_params(0, SPEC)
    _, round_key = jax.random.split(key)
    evaluated = evaluation.evaluate(env, params, key=round_key, episodes=episodes, episode_length=length)
    for name in ("time_at_goal", "touched", "stay", "diverged"):
        expected = np.asarray(getattr(evaluated, name))
        np.testing.assert_array_equal([getattr(episode, name) for episode in driven], expected)
        assert len(np.unique(expected)) > 1, f"all episodes have the same {name}"
    ends = [np.abs(episode.path[-1] - episode.goal).item() for episode in driven]
    np.testing.assert_allclose(ends, evaluated.final_distance, atol=1e-6)


class Counted:
    """Pushes, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[np.ndarray] = []

    def act(self, state: np.ndarray, goal: np.ndarray) -> Action:
        self.asked.append(state)
        return answer(np.zeros(1, np.float32), batch_rows=1)


def test_a_robot_whose_world_diverged_sends_no_more_requests() -> None:
    client = Counted()
    (episode,) = fleet.drive(Wandering(), [client], key=jax.random.key(3), episodes=1, episode_length=12)
    # the state passes 9 in the ninth step; a server would refuse it, which ends the run
    assert np.isfinite(client.asked).all()
    assert len(episode.ticks) == len(client.asked) == 9
    assert episode.missed == 0
    assert np.isfinite(episode.path).all()


def test_the_first_episode_keeps_its_poses_on_request(env: GoalEnv) -> None:
    episodes = list(
        fleet.drive(env, [Pusher()] * 3, key=jax.random.key(1), episodes=4, episode_length=5, keep_poses=True)
    )
    assert episodes[0].poses is not None
    np.testing.assert_array_equal(episodes[0].poses, episodes[0].path)  # a ball's joints are its place
    assert [episode.poses for episode in episodes[1:]] == [None, None, None]


def test_poses_end_where_the_episode_does(cart: GoalEnv) -> None:
    """Pushed with 1 N, the cart is 0.01 m times 1, 3, 6, 10, 15 from its start, and its episode ends beyond 0.12 m."""

    (episode,) = fleet.drive(cart, [Push()], key=jax.random.key(0), episodes=1, episode_length=9, keep_poses=True)
    assert episode.poses is not None
    np.testing.assert_allclose(episode.poses[:, 0], [0, 0.01, 0.03, 0.06, 0.1, 0.15], atol=1e-6)


def test_a_late_reply_is_a_missed_tick_without_a_force(env: GoalEnv) -> None:
    clients = [Pusher(late=True), Pusher(), Pusher()]
    late, steady, _ = fleet.drive(env, clients, key=jax.random.key(0), episodes=3, episode_length=9)
    assert (late.missed, len(late.ticks)) == (3, 6)
    assert (steady.missed, len(steady.ticks)) == (0, 9)
    speed = np.diff(late.path[:, 1])
    assert speed[5] < speed[4], "without a force, damping slows it"
    assert speed[6] > speed[5]
    assert late.path[-1, 1] < steady.path[-1, 1] - 0.1


def test_a_robot_executes_every_action_of_a_chunk_and_then_asks_again(cart: GoalEnv) -> None:
    """1 kg, 1 N and 0.1 s: a push gives 0.1 m/s, and so 0.01 m in this step and the next; then a brake stops it."""
    pulse, later = Pulse(), Pulse(late=(2,))
    drive = fleet.drive(cart, [pulse, later], key=jax.random.key(0), episodes=3, episode_length=7)
    episode, missing, alone = drive
    np.testing.assert_allclose(episode.path[:, 0], [0, 0.01, 0.02, 0.02, 0.03, 0.04, 0.04, 0.05], atol=1e-6)
    np.testing.assert_allclose(pulse.asked, [0, 0.02, 0.04] * 2, atol=1e-6)  # the second episode begins with a request
    assert (len(episode.ticks), episode.missed, len(alone.ticks)) == (3, 0, 3)
    # its second request is late: it applies no force for one period, and then asks again
    np.testing.assert_allclose(missing.path[:, 0], [0, 0.01, 0.02, 0.02, 0.02, 0.03, 0.04, 0.04], atol=1e-6)
    np.testing.assert_allclose(later.asked, [0, 0.02, 0.02], atol=1e-6)
    assert (len(missing.ticks), missing.missed) == (2, 1)


class Restarting:
    """Pushes with 1 N. Gives `failures` in place of the replies to the requests after the first one."""

    def __init__(self, failures: list[KilolayerError]) -> None:
        self.failures: list[KilolayerError | None] = [None, *failures]

    def act(self, state: np.ndarray, goal: np.ndarray) -> Action:
        if self.failures and (error := self.failures.pop(0)):
            raise error
        return answer(np.ones(1, np.float32), batch_rows=1)


def test_a_robot_goes_on_while_the_server_is_gone(cart: GoalEnv) -> None:
    """It rolls for three periods of 0.1 s, which take as long on the wall clock; then it is pushed again."""
    gone = Unavailable("Act failed: shutting down.", status="UNAVAILABLE")
    broken = ServerFailure("Act failed: Stream removed.", status="UNKNOWN")
    waited, lines = list[float](), list[str]()
    (episode,) = fleet.drive(
        cart,
        [Restarting([gone, DeadlineExceeded("late", status="DEADLINE_EXCEEDED"), broken])],
        key=jax.random.key(0),
        episodes=1,
        episode_length=5,
        outage=Outage(say=lines.append, clock=lambda: sum(waited)),
        sleep=waited.append,
    )
    np.testing.assert_allclose(episode.path[:, 0], [0, 0.01, 0.02, 0.03, 0.04, 0.06], atol=1e-6)
    assert (len(episode.ticks), episode.missed) == (2, 3)
    assert [tick.is_warm_up for tick in episode.ticks] == [True, True]  # the first replies of their connections
    assert waited == pytest.approx([0.1] * 3)
    assert lines == [
        "Act failed: shutting down. The robots go on without replies, and send a request in every control period.",
        "The server answers again after 0.3 s; 3 requests were missed.",
    ]


def test_the_first_reply_of_each_connection_is_a_warm_up(cart: GoalEnv) -> None:
    gone, late = Unavailable("gone", status=""), DeadlineExceeded("late", status="")
    robot = Restarting([])
    robot.failures += [None, gone, None, late]
    episodes = list(
        fleet.drive(cart, [robot], key=jax.random.key(0), episodes=2, episode_length=4, sleep=lambda _: None)
    )
    flags = [[tick.is_warm_up for tick in episode.ticks] for episode in episodes]
    assert flags == [[True, False, True], [False, False, False]]  # after Unavailable, but not after a late reply


def test_late_and_rejected_requests_are_no_outage() -> None:
    lines = list[str]()
    outage = Outage(say=lines.append)
    outage.after(
        [DeadlineExceeded("late", status="DEADLINE_EXCEEDED"), Overloaded("full", status="RESOURCE_EXHAUSTED")]
    )
    assert (outage.is_on, lines) == (False, [])


class Push:
    """Pushes with 1 N. The requests whose numbers are above `last` get no reply."""

    def __init__(self, last: int = 99) -> None:
        self.left = last

    def act(self, state: np.ndarray, goal: np.ndarray) -> Action:
        self.left -= 1
        if self.left < 0:
            raise DeadlineExceeded("too late", status="DEADLINE_EXCEEDED")
        return dataclasses.replace(answer(np.ones(1, np.float32), batch_rows=1), version=f"{self.left}")


@pytest.mark.parametrize(
    ("length", "reached", "time_at_goal"), [(2, False, 0), (3, True, 1), (4, False, 1), (9, False, 1)]
)
def test_an_episode_is_reached_if_it_ends_at_the_goal(
    cart: GoalEnv, length: int, *, reached: bool, time_at_goal: int
) -> None:
    """Pushed with 1 N, the cart is at 0.01, 0.03, 0.06, 0.1 and 0.15 m; its goal is within 0.02 m of 0.07 m."""
    (episode,) = fleet.drive(cart, [Push()], key=jax.random.key(0), episodes=1, episode_length=length)
    assert (episode.reached, episode.time_at_goal) == (reached, time_at_goal)


class Reporting:
    """Notes the reports of a robot."""

    def __init__(self) -> None:
        self.reports: list[tuple[int, dict[str, Any]]] = []

    def report(self, number: int, **about: Any) -> None:
        self.reports.append((number, about))


def test_a_robot_reports_its_episode_with_the_version_of_its_last_action(cart: GoalEnv) -> None:
    drive = fleet.drive(cart, [Push(1), Push(0)], key=jax.random.key(0), episodes=2, episode_length=3)
    client = Reporting()
    for number, episode in enumerate(drive):
        assert fleet.report(cast("PolicyClient", client), episode, number=40 + number)
    # after one push it rolls: 0.01, 0.02 and 0.03 m. The other robot got no action.
    assert client.reports == [(40, {"version": "0", "reached": False, "time_at_goal": 0, "timeout_s": 10.0})]


@pytest.mark.parametrize(
    "error",
    [Unavailable("gone", status="UNAVAILABLE"), DeadlineExceeded("late", status="DEADLINE_EXCEEDED")],
)
def test_a_report_that_does_not_arrive_is_no_error(error: KilolayerError) -> None:
    class Gone:
        def report(self, number: int, **about: object) -> None:
            raise error

    episode = fleet.Episode(np.zeros(1), np.zeros((2, 1)), time_at_goal=0, stay=0.0, ticks=(), missed=1, version="7")
    assert not fleet.report(cast("PolicyClient", Gone()), episode, number=40)


def test_every_simulated_robot_has_an_id() -> None:
    clients = fleet.connect("127.0.0.1:1", robots=2, policy="p", timeout_s=1)
    requests = [client._requests for client in clients]  # pyright: ignore[reportPrivateUsage]
    named = [request.act([0], [0], seed=None, best_of=None, priority=0).message.robot_id for request in requests]
    assert named == ["sim-0", "sim-1"]
    for client in clients:
        client.close()


def test_a_refusal_ends_the_run(env: GoalEnv) -> None:
    class Refused:
        def act(self, state: np.ndarray, goal: np.ndarray) -> Action:
            raise InvalidRequest("expected 5 values", status="INVALID_ARGUMENT")

    with pytest.raises(InvalidRequest, match="expected 5 values"):
        list(fleet.drive(env, [Refused()] * 3, key=jax.random.key(0), episodes=3, episode_length=3))


def test_the_results_worked_out_by_hand(env: GoalEnv) -> None:
    path = np.ones((3, 2))
    ticks = [fleet.Tick(ms / 1e3, rows, "8") for ms, rows in ((1, 1), (2, 2), (3, 2), (4, 4))]
    quarters = tuple(itertools.repeat(fleet.Tick(0.005, 4, "7"), 3))
    episodes = [
        fleet.Episode(np.zeros(2), path, time_at_goal=0, stay=0.0, ticks=tuple(ticks), missed=1),
        fleet.Episode(np.ones(2), path, time_at_goal=10, stay=0.5, ticks=quarters, missed=0),
    ]
    warm_up = fleet.Tick(9.0, 4, "7", is_warm_up=True)  # a batch like the others, and no latency
    episodes[1] = episodes[1]._replace(ticks=(warm_up, *quarters[1:]))
    figures = summary.summarize(env, episodes, policy="p", robots=2, wall_s=1.5, picture=None)
    assert (figures.touched, figures.stay, figures.diverged) == (0.5, 0.25, 0)
    assert figures.time_at_goal_steps == 5
    assert figures.time_at_goal_s == pytest.approx(0.8)
    assert (figures.requests, figures.missed) == (8, 1)
    assert figures.latency_p50_ms == pytest.approx(3.5)  # of 1, 2, 3, 4, 5 and 5 ms
    assert figures.versions == {"8": 4, "7": 3}
    assert figures.to_table().title == "p versions 8 (57%), 7 (43%) on point_u_maze"
    assert figures.mean_batch_rows == pytest.approx(7 / 3)  # 7 rows in a batch of one, one of two and one of four


def test_without_replies_there_is_no_latency(env: GoalEnv) -> None:
    silent = [fleet.Episode(np.zeros(2), np.ones((2, 2)), time_at_goal=0, stay=0.0, ticks=(), missed=4)]
    figures = summary.summarize(env, silent, policy="p", robots=1, wall_s=1.0, picture=None)
    assert figures.latency_p50_ms is None
    assert figures.mean_batch_rows is None
    assert figures.requests == figures.missed == 4
    assert figures.versions == {}
    assert figures.to_table().title == "p, which answered no request, on point_u_maze"
