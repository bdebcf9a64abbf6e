"""Where the camera stands, what is in the picture, and what is said where nothing can be drawn."""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import mujoco
import numpy as np
import pytest

from training.envs import registry
from training.envs.building import scenery
from training.envs.custom.mjcf_env import Box, MjcfEnv
from training.envs.manipulation import table
from training.envs.rendering import camera

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "two_link" / "two_link.xml"


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
    with pytest.raises(camera.CannotDrawError, match="MUJOCO_GL=glfw does not work on this machine; unset it"):
        camera.choose_backend("glfw", works=lambda backend: backend == "egl")


def test_without_egl_and_osmesa_the_error_says_what_to_install(linux: None) -> None:
    with pytest.raises(camera.CannotDrawError, match=r"neither EGL nor OSMesa .* apt-get install libegl1 libosmesa6"):
        camera.choose_backend(None, works=lambda _: False)


def test_a_backend_that_ends_or_hangs_its_process_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for trial in ("import os; os.abort()", "import time; time.sleep(600)", "raise SystemExit(1)"):
        monkeypatch.setattr(camera, "_TRIAL", trial)
        monkeypatch.setattr(camera, "_TRIAL_S", 1.0)
        assert not camera._draws("egl")
    monkeypatch.setattr(camera, "_TRIAL", "import os; raise SystemExit(os.environ['MUJOCO_GL'] != 'egl')")
    monkeypatch.setattr(camera, "_TRIAL_S", 240.0)
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
    middle = np.array([5.0, 6.0, 7.0])
    square = middle + np.array([[half_width, 1, 0], [-half_width, 1, 0], [half_width, -1, 0], [-half_width, -1, 0]])
    view = camera.frame(square, radii=np.zeros(4), angles_deg=(90, -90), fov_deg=90, aspect=aspect)
    np.testing.assert_allclose(view.lookat, middle)
    assert view.distance == pytest.approx(1.08 * distance)


def test_depth_counts() -> None:
    """Seen along x, the nearer side of a cube of 2 m is 1 m before its middle."""
    cube = np.array(list(itertools.product((-1.0, 1.0), repeat=3)))
    view = camera.frame(cube, radii=np.zeros(8), angles_deg=(0, 0), fov_deg=90, aspect=1.0)
    np.testing.assert_allclose(view.lookat, np.zeros(3), atol=1e-12)
    assert view.distance == pytest.approx(1.08 * 2)


def test_a_sphere_fills_the_picture() -> None:
    """At 90 degrees, the edges of the picture touch a sphere of 2 m from a distance of 2 m times the root of 2."""
    view = camera.frame(np.array([[3.0, 0, 1]]), radii=np.array([2.0]), angles_deg=(0, -20), fov_deg=90, aspect=1.0)
    np.testing.assert_allclose(view.lookat, [3, 0, 1], atol=1e-12)
    assert view.distance == pytest.approx(1.08 * 2 * 2**0.5)


def test_what_is_on_one_side_only_does_not_move_the_camera_away() -> None:
    """Seen along x, at 90 degrees: points at y = 0 and 2 need a camera 1 m away, at y = 1."""
    points = np.array([[0.0, 0, 0], [0, 2, 0]])
    view = camera.frame(points, radii=np.zeros(2), angles_deg=(0, 0), fov_deg=90, aspect=1.0)
    np.testing.assert_allclose(view.lookat, [0, 1, 0], atol=1e-12)
    assert view.distance == pytest.approx(1.08)


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


def middle_of(color: tuple[float, ...], picture: np.ndarray) -> np.ndarray:
    """Column and row of the middle of the pixels of about that hue; there must be some."""
    hues = picture / np.maximum(picture.max(axis=-1, keepdims=True), 1)
    wanted = np.array(color[:3]) / max(color[:3])
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
    floor = picture[:6].reshape(-1, 3)  # behind the maze
    assert floor.min() > 150
    assert len(np.unique(floor, axis=0)) > 10


def test_the_camera_keeps_robot_and_goal_in_the_picture(drawing: None) -> None:
    ant = registry.make("ant")
    standing = np.array(ant.sample_start(jax.random.key(0))[0])
    with camera.Camera(ant, width=320, height=240) as eye:
        for goal in ([10, 0], [0, 10], [-10, 0], [0, -10], [0.7, 0.7]):
            picture = eye.picture(standing, np.array(goal, float))
            robot, marker = (middle_of(color, picture) for color in (scenery.ROBOT, scenery.GOAL))
            assert np.linalg.norm(robot - marker) > 20

        near = far = eye.picture(standing, np.array([10.0, 0.0]))
        for x in np.linspace(0, 9, 25):  # it walks up to the goal, and the camera comes along
            standing[0] = x
            near = eye.picture(standing, np.array([10.0, 0.0]))
        assert orange(near) > 2 * orange(far)


def orange(picture: np.ndarray) -> int:
    red, green, blue = (picture[..., channel].astype(int) for channel in range(3))
    return int(((red > green + 40) & (green > blue)).sum())


def test_marks_lie_on_the_table_and_the_floor_far_off_is_clean(drawing: None) -> None:
    """The squares where the cube starts and where it shall be, side by side in x; beside the arm is only floor."""
    arm = registry.make("arm_push_easy")
    start, goal = np.array(arm.sample_start(jax.random.key(0))[0]), np.array([0.1, 0.6, 0.03])
    with camera.Camera(arm, width=320, height=240) as eye:
        picture = eye.picture(start, goal)
    (blue, _), (red, _) = middle_of(table._BLUE, picture), middle_of(table._RED, picture)
    assert blue > red + 20  # the camera looks along -y, so that x goes to the left
    far_off = picture[:60, :120]
    assert far_off.min() > 150
    assert len(np.unique(far_off.reshape(-1, 3), axis=0)) > 10


def rows_and_columns(picture: np.ndarray, seen: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]]:
    """First and last row and column of the pixels where `seen: [height, width]`; there must be some."""
    rows, columns = np.nonzero(seen)
    assert len(rows) > 100
    return (int(rows.min()), int(rows.max())), (int(columns.min()), int(columns.max()))


def test_an_arm_is_seen_whole_beside_its_bins(drawing: None) -> None:
    """Its shapes are white, brighter than every tile of the floor; they end before the edges of the picture."""
    arm = registry.make("arm_binpick_hard")
    start, _, goal = arm.sample_task(jax.random.key(1))
    with camera.Camera(arm, width=320, height=240) as eye:
        picture = eye.picture(np.asarray(start), np.asarray(goal))
    (top, bottom), (left, right) = rows_and_columns(picture, picture.min(axis=-1) > 235)
    assert 0 < top < 60
    assert bottom < 239
    assert left > 0
    assert right < 319


def test_a_robot_of_ones_own_fills_the_picture_and_stands_on_a_floor(drawing: None) -> None:
    """Two links of 0.55 m in a plane, without a floor in their file: one is drawn below them, and touches nothing."""
    facts = {"goal_sites": "fingertip", "goal_axes": "xy", "goals": Box(low=(0.2, -0.35), high=(0.4, 0.35))}
    two_link = MjcfEnv("two_link", EXAMPLE, success_radius=0.05, control_period_s=0.04, episode_length=100, **facts)
    start, _, goal = two_link.sample_task(jax.random.key(1))
    with camera.Camera(two_link, width=320, height=240) as eye:
        picture = eye.picture(np.asarray(start), np.asarray(goal))
    _, (left, right) = rows_and_columns(picture, picture.max(axis=-1) < 130)
    assert right - left > 240
    assert picture[239].min() > 150
    assert len(np.unique(picture[200:].reshape(-1, 3), axis=0)) > 10
    (floor,) = np.flatnonzero(two_link.model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE)
    assert two_link.model.geom_pos[floor, 2] == pytest.approx(-0.02)  # the radius of the links
    assert two_link.model.geom_contype[floor] == two_link.model.geom_conaffinity[floor] == 0


def test_what_is_only_to_be_seen_touches_nothing() -> None:
    for name in ("point_u_maze", "ant_u_maze"):
        model = registry.make(name).model
        seen = [model.geom(index) for index in range(model.ngeom) if model.geom(index).name.endswith(" seen")]
        assert len(seen) == 4
        for geom in [*seen, *([model.geom("floor")] if name == "point_u_maze" else [])]:
            assert (geom.contype.item(), geom.conaffinity.item()) == (0, 0)


@pytest.mark.parametrize(
    ("size", "complaint"),
    [
        ({"width": 0}, "width must be a whole number of pixels from 1 to 1920, not 0; try 640"),
        ({"height": -3}, "height must be a whole number of pixels from 1 to 1440, not -3; try 480"),
        ({"width": 1921}, "width must be a whole number of pixels from 1 to 1920, not 1921; try 640"),
        ({"height": 7.5}, "height must be a whole number of pixels from 1 to 1440, not 7.5; try 480"),
    ],
)
def test_a_size_that_no_picture_has_is_refused_before_anything_is_drawn(
    size: dict[str, int], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(camera, "make_ready", lambda: pytest.fail("too late"))
    with pytest.raises(ValueError, match=f"a picture of point_u_maze: {complaint}"):
        camera.Camera(registry.make("point_u_maze"), **size)


def test_an_egl_that_is_sent_to_no_device_is_not_taken_for_one_that_is_missing(linux: None) -> None:
    def works(backend: str, *, ignoring: str = "") -> bool:
        return (backend, ignoring) == ("egl", "MUJOCO_EGL_DEVICE_ID")

    for wanted in (None, "egl"):
        with pytest.raises(camera.CannotDrawError, match="MUJOCO_EGL_DEVICE_ID=99 names no device that EGL draws on;"):
            camera.choose_backend(wanted, works=works, egl_device="99")
    with pytest.raises(camera.CannotDrawError, match="MUJOCO_GL=osmesa does not work on this machine"):
        camera.choose_backend("osmesa", works=works, egl_device="99")
    with pytest.raises(camera.CannotDrawError, match="neither EGL nor OSMesa"):
        camera.choose_backend(None, works=lambda *_, **__: False, egl_device="0")


def test_a_trial_can_leave_out_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera, "_TRIAL", "import os; raise SystemExit('MUJOCO_EGL_DEVICE_ID' in os.environ)")
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "99")
    assert not camera._draws("egl")
    assert camera._draws("egl", ignoring="MUJOCO_EGL_DEVICE_ID")


DRAWS = """
import sys
from pathlib import Path
import numpy as np
import rich.console
from clients.sim import film, fleet
from tests.training.cart import Cart
poses = np.zeros((2, 1))
episode = fleet.Episode(np.zeros(1), poses, time_at_goal=0, stay=0.0, ticks=(), missed=1, poses=poses)
film.show(Cart("cart"), episode, video=None, picture=Path(sys.argv[1]), console=rich.console.Console())
"""


@pytest.mark.slow
def test_a_backend_that_is_none_matters_only_where_something_is_drawn(tmp_path: Path) -> None:
    """MuJoCo itself ends with an error where it is imported."""
    few = (
        "from training.envs import registry; first = dict([*registry.DEFAULT.entries.items()][:1]); "
        "registry.DEFAULT = registry.EnvRegistry(first, variants={}); "
    )
    lists = few + "from training.run import main; raise SystemExit(main(['--list-envs']))"
    environment = os.environ | {"MUJOCO_GL": "nonsense"}
    for code, told in (
        (lists, ""),
        ("import training.envs, training.algorithms.baselines, os; assert os.environ['MUJOCO_GL'] == 'nonsense'", ""),
        (
            DRAWS,
            "no pictures: MUJOCO_GL=nonsense does not work on this machine; unset it to try EGL and OSMesa,",
        ),
    ):
        command = [sys.executable, "-c", code, str(tmp_path / "end.png")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=480, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stderr.startswith(told)
        assert done.stderr.count("\n") == bool(told)
    assert not list(tmp_path.iterdir())
