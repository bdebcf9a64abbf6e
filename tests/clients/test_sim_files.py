"""What simulated robots leave behind: results, paths, a video and a picture; and which flags for them are refused."""

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import imageio.v3 as imageio
import imageio_ffmpeg
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from clients.sim import film, fleet, summary
from clients.sim import run as sim
from kilolayer import PolicyClient
from tests.clients.fakes import Pusher
from training.envs import registry
from training.envs.core.goal_env import GoalEnv
from training.envs.rendering import camera


@pytest.fixture(scope="module")
def env() -> GoalEnv:
    return registry.make("point_u_maze")


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
    env: GoalEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever becomes of the film: here Ctrl-C."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    class Ready(Pusher):
        def wait_until_ready(self, timeout_s: float) -> SimpleNamespace:
            facts = env.spec
            names = {what: getattr(facts, what) for what in ("state_names", "goal_names", "action_names")}
            return SimpleNamespace(environment=facts.name, name="p", version="7", **names)

        def report(self, number: int, **about: object) -> None:
            reports.append((number, about["version"]))

        def close(self) -> None: ...

    reports: list[tuple[int, object]] = []
    monkeypatch.setattr(registry, "make", lambda _: env)
    monkeypatch.setattr(fleet, "connect", lambda *_, **__: [Ready(), Ready(), Ready()])
    monkeypatch.setattr(film, "show", interrupted)
    config = sim.DriveConfig(
        env="point_u_maze", robots=3, episodes=4, episode_length=8, out=tmp_path / "out", video=tmp_path / "film.mp4"
    )
    said = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        sim.run(config, console=rich.console.Console(file=said, width=200), wall_clock_ns=lambda: 5_999_999)
    assert "p version 1 on point_u_maze" in said.getvalue()
    assert capsys.readouterr().err == "p is ready at 127.0.0.1:50051; compiling point_u_maze, which may take a minute\n"
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["requests"] == 32
    # In ms, and the fourth episode is the first robot's second one.
    assert reports == [(5, "1"), (5, "1"), (5, "1"), (6, "1")]
    assert (tmp_path / "out" / "paths.png").read_bytes().startswith(b"\x89PNG")


def test_a_file_extension_may_be_in_capitals() -> None:
    config = sim.DriveConfig(env="point_u_maze", video=Path("-x.MP4"), picture=Path("END.Png"))
    assert (config.video, config.picture) == (Path("-x.MP4"), Path("END.Png"))


@pytest.mark.parametrize(
    ("field", "url"), [("out", "gs://x/y"), ("video", "s3://x/a.mp4"), ("picture", "gs://x/a.png")]
)
def test_a_url_is_refused_before_the_run(field: str, url: str) -> None:
    with pytest.raises(
        sim.DriveError, match=f"{field} must be a path on this machine, got the URL {url}; use a folder"
    ):
        sim.DriveConfig(env="point_u_maze", **{field: Path(url)})  # pyright: ignore[reportArgumentType]


def test_a_leading_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert sim.DriveConfig(env="point_u_maze", out=Path("~/drive")).out == Path("/home/ada/drive")


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


def test_the_settings_of_jax_are_those_of_training_whatever_the_shell_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    types: list[np.dtype] = []

    def run(*_: object, **__: object) -> SimpleNamespace:
        types.append(jnp.zeros(1).dtype)
        return SimpleNamespace(stay=1.0, versions={"7": 1})

    monkeypatch.setattr(sim, "run", run)
    monkeypatch.setenv("JAX_ENABLE_X64", "1")
    jax.config.update("jax_enable_x64", True)
    try:
        assert sim.main(["--env", "point_u_maze"]) == 0
    finally:
        jax.config.update("jax_enable_x64", False)
    assert types == [jnp.float32]
    assert capsys.readouterr().err == "warning: ignoring JAX_ENABLE_X64=1: this program sets it itself\n"


def test_a_run_without_any_reply_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sim, "run", lambda *_, **__: SimpleNamespace(stay=0.0, versions={}))
    assert sim.main(["--env", "point_u_maze"]) == 1
    assert "error: no request was answered; see the server's log, or raise --timeout-s" in capsys.readouterr().err


def test_after_a_report_that_failed_the_rest_of_its_round_is_not_sent(
    env: GoalEnv, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rounds of three: the first report of the first round fails, and the second round is reported."""
    tried: list[int] = []
    episodes = [moving_episode()] * 5
    monkeypatch.setattr(fleet, "drive", lambda *_, **__: iter(episodes))
    monkeypatch.setattr(fleet, "report", lambda *_, number: tried.append(number) or number == 8)
    config = sim.DriveConfig(env="point_u_maze", robots=3, episodes=5)
    console = rich.console.Console(file=io.StringIO())
    driven = sim._drive_with_progress(  # pyright: ignore[reportPrivateUsage]
        config, env, [cast("PolicyClient", None)] * 3, console=console, first_number=7
    )
    assert driven == episodes
    assert tried == [7, 8, 8]
    assert capsys.readouterr().err == "3 of 5 episodes were not reported, because the server did not answer.\n"


def test_a_gpu_that_jax_cannot_use_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sim.jax_settings, "device_problem", lambda: "JAX has no device")
    monkeypatch.setattr(sim, "run", pytest.fail)
    assert sim.main(["--env", "point_u_maze"]) == 1
    assert capsys.readouterr().err == "error: JAX has no device\n"
