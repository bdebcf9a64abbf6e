"""Simulated robots with a fake client, and the results of a run worked out by hand."""

import dataclasses
import io
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import imageio.v3 as imageio
import imageio_ffmpeg
import jax
import numpy as np
import pytest
import rich.console
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from clients.sim import film, fleet, summary
from clients.sim import run as sim
from kilolayer import Action, DeadlineExceeded, InvalidRequest
from policy.networks import init_policy
from tests.training.cart import Cart
from tests.training.counter import SPEC, Wandering
from training import evaluation
from training.envs import registry
from training.envs.core.goal_env import GoalEnv
from training.envs.locomotion.point_maze import PointMaze
from training.envs.rendering import camera


@pytest.fixture(scope="module")
def env() -> GoalEnv:
    return registry.make("point_u_maze")


class Pusher:
    """Always pushes along +y; its every third answer is late if `late`."""

    def __init__(self, *, late: bool = False) -> None:
        self.asked: list[tuple[np.ndarray, np.ndarray]] = []
        self.late = late

    def act(self, state: np.ndarray, goal: np.ndarray) -> Action:
        self.asked.append((state, goal))
        if self.late and len(self.asked) % 3 == 0:
            raise DeadlineExceeded("too late", status="DEADLINE_EXCEEDED")
        return answer(np.array([0.0, 1.0], np.float32), batch_rows=2)


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


def answer(action: np.ndarray, *, batch_rows: int, round_trip_s: float = 0.001) -> Action:
    return Action(
        chunk=action[None],
        policy="p",
        version="1",
        sequence=1,
        queue_us=0,
        compute_us=0,
        batch_rows=batch_rows,
        round_trip_s=round_trip_s,
    )


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
    params = init_policy(jax.random.key(0), SPEC)
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


def test_poses_end_where_the_episode_does() -> None:
    """Pushed with 1 N, the cart is 0.01 m times 1, 3, 6, 10, 15 from its start, and its episode ends beyond 0.12 m."""

    class Push:
        def act(self, state: np.ndarray, goal: np.ndarray) -> Action:
            return answer(np.ones(1, np.float32), batch_rows=1)

    (episode,) = fleet.drive(
        Cart("cart"), [Push()], key=jax.random.key(0), episodes=1, episode_length=9, keep_poses=True
    )
    assert episode.poses is not None
    np.testing.assert_allclose(episode.poses[:, 0], [0, 0.01, 0.03, 0.06, 0.1, 0.15], atol=1e-6)


def test_an_episode_becomes_a_video_and_a_picture(env: GoalEnv, tmp_path: Path) -> None:
    try:
        camera.make_ready()
    except camera.CannotDrawError as error:
        pytest.skip(f"this machine cannot draw: {error}")
    video, picture = tmp_path / "new folder" / "film.mp4", tmp_path / "end.png"
    said = io.StringIO()
    film.show(env, moving_episode(), video=video, picture=picture, console=rich.console.Console(file=said, width=999))
    assert said.getvalue().splitlines() == [f"video in {video}", f"picture in {picture}"]
    assert imageio_ffmpeg.count_frames_and_secs(str(video)) == (4, pytest.approx(0.64))  # 4 control periods of 0.16 s
    with camera.Camera(env) as eye:
        expected = eye.picture(np.array([1.3, 1.0]), np.array([3.0, 1.0]))
    np.testing.assert_array_equal(imageio.imread(picture), expected)


def moving_episode() -> fleet.Episode:
    poses = np.array([[1.0, 1.0], [1.1, 1.0], [1.2, 1.0], [1.3, 1.0]])
    return fleet.Episode(np.array([3.0, 1.0]), poses, time_at_goal=0, stay=0.0, ticks=(), missed=3, poses=poses)


def test_a_rendering_failure_is_reported_in_one_line(
    env: GoalEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nothing_there() -> None:
        camera.choose_backend(None, works=lambda _: False)

    monkeypatch.setattr(camera, "make_ready", nothing_there)
    console = rich.console.Console(file=io.StringIO())
    film.show(env, moving_episode(), video=tmp_path / "film.mp4", picture=tmp_path / "end.png", console=console)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("no pictures: neither EGL nor OSMesa works on this machine")
    assert not list(tmp_path.iterdir())


def test_a_video_that_fails_does_not_cost_the_picture(
    env: GoalEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(film, "Camera", Blank)
    monkeypatch.setattr(film, "write_video", full)
    said = rich.console.Console(file=io.StringIO(), width=999)
    film.show(env, moving_episode(), video=tmp_path / "film.mp4", picture=tmp_path / "end.png", console=said)
    assert capsys.readouterr().err == "no video: no space left\n"
    assert said.file.getvalue() == f"picture in {tmp_path / 'end.png'}\n"  # pyright: ignore[reportAttributeAccessIssue]
    assert imageio.imread(tmp_path / "end.png").shape == (4, 6, 3)


class Blank:
    """A camera that sees nothing."""

    def __init__(self, env: GoalEnv) -> None: ...

    def picture(self, qpos: np.ndarray, goal: np.ndarray) -> np.ndarray:
        return np.zeros((4, 6, 3), np.uint8)

    def __enter__(self) -> "Blank":
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.mark.parametrize("field", ["out", "video", "picture"])
def test_a_path_that_cannot_be_written_is_refused_before_the_run(
    field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "make", lambda *_: pytest.fail("too late"))
    endings = {"out": "", "video": ".mp4", "picture": ".png"}
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / f"new{endings[field]}"
    with pytest.raises(
        sim.DriveError, match=rf"{field}: cannot write .*/file is not a writable folder; choose another path"
    ):
        drive_into(field, below)
    if field != "out":
        folder = tmp_path / f"folder{endings[field]}"
        folder.mkdir()
        with pytest.raises(sim.DriveError, match=f"{field}: cannot write .*: it is a folder; choose another path"):
            drive_into(field, folder)
    assert not below.exists()


def drive_into(field: str, path: Path) -> summary.Summary:
    config = sim.DriveConfig(env="point_u_maze", **{field: path})  # pyright: ignore[reportArgumentType]
    return sim.run(config, console=rich.console.Console(file=io.StringIO()))


def test_the_results_are_written_before_the_video_is_rendered(
    env: GoalEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever becomes of the film: here Ctrl-C."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    class Ready(Pusher):
        def wait_until_ready(self, timeout_s: float) -> SimpleNamespace:
            facts = env.spec
            names = {what: getattr(facts, what) for what in ("state_names", "goal_names", "action_names")}
            return SimpleNamespace(environment=facts.name, name="p", version="7", **names)

        def close(self) -> None: ...

    monkeypatch.setattr(registry, "make", lambda _: env)
    monkeypatch.setattr(fleet, "connect", lambda *_, **__: [Ready(), Ready(), Ready()])
    monkeypatch.setattr(film, "show", interrupted)
    config = sim.DriveConfig(
        env="point_u_maze", robots=3, episodes=3, episode_length=8, out=tmp_path / "out", video=tmp_path / "film.mp4"
    )
    said = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        sim.run(config, console=rich.console.Console(file=said, width=200))
    assert "p version 7 on point_u_maze" in said.getvalue()
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["requests"] == 24
    assert (tmp_path / "out" / "paths.png").read_bytes().startswith(b"\x89PNG")


def test_a_file_extension_may_be_in_capitals() -> None:
    config = sim.DriveConfig(env="point_u_maze", video=Path("-x.MP4"), picture=Path("END.Png"))
    assert (config.video, config.picture) == (Path("-x.MP4"), Path("END.Png"))


@pytest.mark.parametrize(("field", "ending"), [("video", ".mp4"), ("picture", ".png")])
def test_another_file_extension_is_refused_before_the_run(field: str, ending: str) -> None:
    with pytest.raises(sim.DriveError, match=f"{field} must be a file name that ends in {ending}, got film.avi"):
        sim.DriveConfig(env="point_u_maze", **{field: Path("film.avi")})  # pyright: ignore[reportArgumentType]


def test_help_has_no_python_values(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        sim.main(["--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert "None" not in text
    for flag in ("--episode-length INT", "--out PATH", "--video PATH", "--picture PATH"):
        assert flag in text


def test_a_late_reply_is_a_missed_tick_without_a_force(env: GoalEnv) -> None:
    clients = [Pusher(late=True), Pusher(), Pusher()]
    late, steady, _ = fleet.drive(env, clients, key=jax.random.key(0), episodes=3, episode_length=9)
    assert (late.missed, len(late.ticks)) == (3, 6)
    assert (steady.missed, len(steady.ticks)) == (0, 9)
    speed = np.diff(late.path[:, 1])
    assert speed[5] < speed[4], "without a force, damping slows it"
    assert speed[6] > speed[5]
    assert late.path[-1, 1] < steady.path[-1, 1] - 0.1


def test_a_robot_executes_every_action_of_a_chunk_and_then_asks_again() -> None:
    """1 kg, 1 N and 0.1 s: a push gives 0.1 m/s, and so 0.01 m in this step and the next; then a brake stops it."""
    pulse, later = Pulse(), Pulse(late=(2,))
    drive = fleet.drive(Cart("cart"), [pulse, later], key=jax.random.key(0), episodes=3, episode_length=7)
    episode, missing, alone = drive
    np.testing.assert_allclose(episode.path[:, 0], [0, 0.01, 0.02, 0.02, 0.03, 0.04, 0.04, 0.05], atol=1e-6)
    np.testing.assert_allclose(pulse.asked, [0, 0.02, 0.04] * 2, atol=1e-6)  # the second episode begins with a request
    assert (len(episode.ticks), episode.missed, len(alone.ticks)) == (3, 0, 3)
    # its second request is late: it applies no force for one period, and then asks again
    np.testing.assert_allclose(missing.path[:, 0], [0, 0.01, 0.02, 0.02, 0.02, 0.03, 0.04, 0.04], atol=1e-6)
    np.testing.assert_allclose(later.asked, [0, 0.02, 0.02], atol=1e-6)
    assert (len(missing.ticks), missing.missed) == (2, 1)


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
    ticks = [fleet.Tick(round_trip_s=ms / 1e3, batch_rows=rows) for ms, rows in ((1, 1), (2, 2), (3, 2), (4, 4))]
    quarters = tuple(itertools.repeat(fleet.Tick(0.005, 4), 3))
    episodes = [
        fleet.Episode(np.zeros(2), path, time_at_goal=0, stay=0.0, ticks=tuple(ticks), missed=1),
        fleet.Episode(np.ones(2), path, time_at_goal=10, stay=0.5, ticks=quarters, missed=0),
    ]
    figures = summary.summarize(env, episodes, policy="p", version="7", robots=2, wall_s=1.5, picture=None)
    assert (figures.touched, figures.stay, figures.diverged) == (0.5, 0.25, 0)
    assert figures.time_at_goal_steps == 5
    assert figures.time_at_goal_s == pytest.approx(0.8)
    assert (figures.requests, figures.missed) == (8, 1)
    assert figures.latency_p50_ms == pytest.approx(4)
    assert figures.mean_batch_rows == pytest.approx(7 / 3)  # 7 rows in a batch of one, one of two and one of four


def test_the_paths_are_drawn_with_the_success_radius_and_without_empty_margins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *args, **kwargs: figures.append(figure) or save(figure, *args, **kwargs)
    )
    goals = [np.array([2.0, 0.5, 9.0]), np.array([4.0, 1.0, 9.0])]
    episodes = [
        fleet.Episode(goal, np.stack([np.zeros(3), goal]), time_at_goal=touched, stay=touched, ticks=(), missed=0)
        for touched, goal in enumerate(goals)
    ]
    arm = registry.make("arm_reach")  # no obstacles; goals of three values; a success radius of 0.1 m
    assert summary.draw_paths(arm, episodes, tmp_path / "paths.png").read_bytes().startswith(b"\x89PNG")
    (figure,) = figures
    (panel,) = figure.axes
    circles = {patch.center: patch.radius for patch in panel.patches if isinstance(patch, Circle)}
    assert circles == {(2.0, 0.5): 0.1, (4.0, 1.0): 0.1}
    margin = 0.03 * 4.1  # of the longer side, from the start at 0 to the circle at 4
    assert panel.get_xlim() == pytest.approx((-margin, 4.1 + margin))
    assert panel.get_ylim() == pytest.approx((-margin, 1.1 + margin))
    width_in, height_in = figure.get_size_inches()
    assert (width_in, height_in - 1) == pytest.approx((6, 6 * (1.1 + 2 * margin) / (4.1 + 2 * margin)))


def test_without_replies_there_is_no_latency(env: GoalEnv) -> None:
    silent = [fleet.Episode(np.zeros(2), np.ones((2, 2)), time_at_goal=0, stay=0.0, ticks=(), missed=4)]
    figures = summary.summarize(env, silent, policy="p", version="7", robots=1, wall_s=1.0, picture=None)
    assert figures.latency_p50_ms is None
    assert figures.mean_batch_rows is None
    assert figures.requests == figures.missed == 4
