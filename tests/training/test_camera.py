"""Where the camera stands, what is in the picture, and what is said where nothing can be drawn."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import imageio.v3 as imageio
import imageio_ffmpeg
import jax
import numpy as np
import pytest

from training.envs import camera, registry, scenery


@pytest.fixture
def linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")


def test_egl_is_tried_first_and_osmesa_next(linux: None) -> None:
    tried: list[str] = []

    def works(backend: str) -> bool:
        tried.append(backend)
        return backend == "osmesa"

    assert camera.choose_backend(None, works=works) == "osmesa"
    assert tried == ["egl", "osmesa"]
    assert camera.choose_backend(None, works=lambda _: True) == "egl"


def test_what_the_user_has_set_is_the_only_one_tried(linux: None) -> None:
    assert camera.choose_backend("osmesa", works=lambda backend: backend == "osmesa") == "osmesa"
    with pytest.raises(camera.CannotDrawError, match="MUJOCO_GL=glfw draws nothing here; unset it"):
        camera.choose_backend("glfw", works=lambda backend: backend == "egl")


def test_where_neither_is_there_it_is_said_what_to_install(linux: None) -> None:
    with pytest.raises(camera.CannotDrawError, match=r"neither EGL nor OSMesa .* apt-get install libegl1 libosmesa6"):
        camera.choose_backend(None, works=lambda _: False)


def test_a_backend_that_ends_or_hangs_its_process_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for trial in ("import os; os.abort()", "import time; time.sleep(60)", "raise SystemExit(1)"):
        monkeypatch.setattr(camera, "_TRIAL", trial)
        monkeypatch.setattr(camera, "_TRIAL_S", 1.0)
        assert not camera._draws("egl")
    monkeypatch.setattr(camera, "_TRIAL", "import os; raise SystemExit(os.environ['MUJOCO_GL'] != 'egl')")
    monkeypatch.setattr(camera, "_TRIAL_S", 30.0)
    assert camera._draws("egl")
    assert not camera._draws("osmesa")


@pytest.mark.parametrize(
    ("half_width", "aspect", "distance"),
    [
        (1.0, 1.0, 1.0),  # at 90 degrees a square of 2 m fills the picture from 1 m
        (1.0, 2.0, 1.0),
        (3.0, 2.0, 1.5),
    ],
)
def test_the_camera_is_as_near_as_it_can_be(half_width: float, aspect: float, distance: float) -> None:
    middle, half = np.array([5.0, 6.0, 7.0]), np.array([half_width, 1.0, 0.0])
    view = camera.frame(middle - half, middle + half, angles_deg=(90, -90), fov_deg=90, aspect=aspect)
    np.testing.assert_allclose(view.lookat, middle)
    assert view.distance == pytest.approx(1.08 * distance)


def test_depth_counts() -> None:
    """Seen along x, the nearer side of a cube of 2 m is 1 m before its middle."""
    view = camera.frame(-np.ones(3), np.ones(3), angles_deg=(0, 0), fov_deg=90, aspect=1.0)
    assert view.distance == pytest.approx(1.08 * 2)


@pytest.mark.parametrize(
    ("period_s", "rate_hz", "stride"), [(0.16, 6.25, 1), (0.05, 20, 1), (1 / 60, 60, 1), (0.015, 100 / 3, 2)]
)
def test_a_film_runs_in_real_time_at_60_frames_at_most(period_s: float, rate_hz: float, stride: int) -> None:
    assert camera.frames_per_s(period_s) == (pytest.approx(rate_hz), stride)


@pytest.mark.parametrize(
    ("goal", "place"), [([1, 2], [1, 2, 0]), ([1, 2, 3], [1, 2, 3]), ([4], [4, 0, 0]), ([1, 2, 3, 4], [1, 2, 3])]
)
def test_a_goal_is_marked_at_its_first_three_values(goal: list[float], place: list[float]) -> None:
    assert registry.make("point_u_maze").marker(np.array(goal)).tolist() == place


@pytest.fixture(scope="module")
def drawing() -> None:
    try:
        camera.make_ready()
    except camera.CannotDrawError as error:
        pytest.skip(f"this machine cannot draw: {error}")


@pytest.fixture
def maze(drawing: None) -> Iterator[camera.Camera]:
    with camera.Camera(registry.make("point_u_maze"), width=320, height=240) as eye:
        yield eye


def middle_of(colour: tuple[float, ...], picture: np.ndarray) -> np.ndarray:
    """Column and row of the middle of the pixels of about that hue; there must be some."""
    hues = picture / np.maximum(picture.max(axis=-1, keepdims=True), 1)
    wanted = np.array(colour[:3]) / max(colour[:3])
    rows, columns = np.nonzero(np.abs(hues - wanted).max(axis=-1) < 0.15)
    assert len(rows) > 10
    return np.array([columns.mean(), rows.mean()])


def test_robot_and_goal_are_seen_where_they_are(maze: camera.Camera) -> None:
    """Seen as the maze's text is written: its middle at (2, 2), x downwards, y to the right."""
    for robot, goal, right, down in (
        ((1, 1), (3, 1), -1, 1),
        ((1, 1), (1, 3), 1, -1),
        ((1, 3), (3, 3), 1, 1),
        ((3, 3), (3, 2), 0, 1),
        ((3, 3), (1, 2), 0, -1),
    ):
        picture = maze.picture(np.array(robot, float), np.array(goal, float))
        assert picture.shape == (240, 320, 3)
        column, row = middle_of(scenery.GOAL, picture) - [159.5, 119.5]
        assert abs(column) < 3 if right == 0 else right * column > 40
        assert down * row > 40
        robot_column, robot_row = middle_of(scenery.ROBOT, picture) - [159.5, 119.5]
        assert np.sign([robot_row, robot_column]).tolist() == np.sign(np.array(robot) - 2).tolist()


def test_the_border_is_seen_and_there_is_a_floor(maze: camera.Camera) -> None:
    picture = maze.picture(np.array([1.0, 1.0]), np.array([3.0, 1.0]))
    middle_of(scenery.WALL, picture[:, :40])  # left of the open cells there is only the border
    floor = picture[:10].reshape(-1, 3)  # behind the maze
    assert floor.min() > 150
    assert len(np.unique(floor, axis=0)) > 10


def test_the_camera_keeps_robot_and_goal_in_the_picture(drawing: None) -> None:
    ant = registry.make("ant")
    standing = np.array(ant.sample_start(jax.random.key(0))[0])
    with camera.Camera(ant, width=320, height=240) as eye:
        for goal in ([10, 0], [0, 10], [-10, 0], [0, -10], [0.7, 0.7]):
            picture = eye.picture(standing, np.array(goal, float))
            robot, marker = (middle_of(colour, picture) for colour in (scenery.ROBOT, scenery.GOAL))
            assert np.linalg.norm(robot - marker) > 20

        near = far = eye.picture(standing, np.array([10.0, 0.0]))
        for x in np.linspace(0, 9, 25):  # it walks up to the goal, and the camera comes along
            standing[0] = x
            near = eye.picture(standing, np.array([10.0, 0.0]))
        assert orange(near) > 2 * orange(far)


def orange(picture: np.ndarray) -> int:
    red, green, blue = (picture[..., channel].astype(int) for channel in range(3))
    return int(((red > green + 40) & (green > blue)).sum())


def test_what_is_only_to_be_seen_touches_nothing() -> None:
    for name in ("point_u_maze", "ant_u_maze"):
        model = registry.make(name).model
        seen = [model.geom(index) for index in range(model.ngeom) if model.geom(index).name.endswith(" seen")]
        assert len(seen) == 4
        for geom in [*seen, *([model.geom("floor")] if name == "point_u_maze" else [])]:
            assert (geom.contype.item(), geom.conaffinity.item()) == (0, 0)


def test_a_video_has_every_picture_at_the_rate_asked_for(tmp_path: Path) -> None:
    pictures = [np.full((32, 48, 3), grey, np.uint8) for grey in range(0, 250, 25)]
    path = tmp_path / "film.mp4"
    camera.write_video(path, pictures, rate_hz=12.5)
    assert imageio_ffmpeg.count_frames_and_secs(str(path)) == (10, pytest.approx(0.8))
    said = subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-i", path], capture_output=True, text=True, check=False)
    assert "h264" in said.stderr
    assert "yuv420p" in said.stderr
    assert "48x32" in said.stderr


def test_a_video_that_cannot_be_written_says_so_in_one_line(tmp_path: Path) -> None:
    pictures = [np.zeros((480, 640, 3), np.uint8)] * 5
    with pytest.raises(OSError, match=r"film\.mp4 could not be written: .*No such file") as caught:
        camera.write_video(tmp_path / "no folder" / "film.mp4", pictures, rate_hz=10)
    assert "\n" not in str(caught.value)


def test_a_picture_is_written_as_it_is(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8)
    camera.write_picture(tmp_path / "one.png", picture)
    np.testing.assert_array_equal(imageio.imread(tmp_path / "one.png"), picture)
