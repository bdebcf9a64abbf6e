"""Pictures of an environment: the robot, its goal in green and the scenery, drawn by MuJoCo without a screen.

MuJoCo draws with OpenGL, through EGL or OSMesa. A backend that does not work can end the process. So each backend is
first tried in a separate process. If the user has set `MUJOCO_GL`, only that backend is tried.
"""

# MuJoCo is compiled and ships no type information.
# pyright: reportAttributeAccessIssue=false

import atexit
import functools
import importlib
import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import mujoco
import numpy as np
from mujoco.rendering.classic import gl_context

from training.envs.building import scenery
from training.envs.core.goal_env import GoalEnv

_BACKENDS = {"linux": ("egl", "osmesa"), "darwin": ("cgl",)}  # other systems use a hidden GLFW window
_EGL_DEVICE = "MUJOCO_EGL_DEVICE_ID"
_TRIAL_S = 60.0
_TRIAL = """
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 16, 16) as renderer:
    renderer.update_scene(data)
    raise SystemExit(not renderer.render().any())
"""
_MARGIN = 1.08  # distance of the camera / the distance at which everything just fits
_FOLLOWING = 0.15  # fraction of the remaining way that the camera moves per picture
_CORE = 0.3, 0.012  # radius of the goal's core / success radius; minimum: / distance of the camera
_SUN_M = 10.0
_TOUCHING_M = 1e-3


class CannotDrawError(RuntimeError):
    """This machine cannot draw pictures. The message says what to install."""


class View(NamedTuple):
    """The point that a camera looks at and its distance from there, in meters."""

    lookat: np.ndarray  # [3]
    distance: float


class Camera:
    """Draws `env`. The picture shows a maze whole, and elsewhere the robot and the goal. Close the camera when done.

    Args:
        env: the environment to draw.
        width, height: size of a picture, in pixels.

    Raises:
        ValueError: a picture would be empty, or larger than the model allows.
        CannotDrawError: neither EGL nor OSMesa works on this machine.
    """

    def __init__(self, env: GoalEnv, *, width: int = 640, height: int = 480) -> None:
        require_size(env, width=width, height=height)
        make_ready()
        self._env = env
        self._angles_deg, self._maze = env.view(), _corners_of_maze(env)
        # Shadows end at this distance. The smaller it is, the finer they are. The physics does not depend on it.
        env.model.vis.map.shadowclip = _shadow_m(env, self._maze) / env.model.stat.extent
        self._renderer = mujoco.Renderer(env.model, height, width)
        # EGL is gone at the end of the interpreter, so a context that is still open prints an error.
        atexit.register(self._renderer.close)
        self._data = mujoco.MjData(env.model)
        self._robot, self._marks = _geoms_of_robot(env.model), _corners_of_marks(env.model)
        self._shown: tuple[np.ndarray, View] | None = None  # goal and view of the last picture

    def picture(self, qpos: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Draw the joint positions `qpos: [nq]` and the goal `[goal_dim]`; return [height, width, 3] uint8."""
        self._data.qpos[:] = qpos
        mujoco.mj_kinematics(self._env.model, self._data)
        mujoco.mj_comPos(self._env.model, self._data)
        mujoco.mj_camlight(self._env.model, self._data)
        camera = mujoco.MjvCamera()
        camera.azimuth, camera.elevation = self._angles_deg
        camera.lookat[:], camera.distance = self._follow(goal)
        self._renderer.update_scene(self._data, camera)
        scene = self._renderer.scene
        _part_boxes(scene, by=1e-4 * self._env.model.stat.extent)
        _follow_with_sun(scene, camera.lookat)
        radius = self._env.spec.success_radius
        core = max(_CORE[0] * radius, _CORE[1] * camera.distance)
        for size, alpha in ((core, 1.0), (radius, 0.3)):
            _add_ball(scene, self._env.marker(goal), radius=size, rgba=(*scenery.GOAL[:3], alpha))
        return self._renderer.render()

    def close(self) -> None:
        """Release the OpenGL context."""
        atexit.unregister(self._renderer.close)
        self._renderer.close()

    def __enter__(self) -> "Camera":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _follow(self, goal: np.ndarray) -> View:
        """Return the view of the next picture. It jumps after a new goal and moves smoothly otherwise."""
        fov_deg = self._env.model.vis.global_.fovy
        points, radii = self._points_to_show(goal)
        aim = frame(points, radii=radii, angles_deg=self._angles_deg, fov_deg=fov_deg, aspect=self._aspect)
        if self._shown is not None and np.array_equal(self._shown[0], goal):
            before = self._shown[1]
            lookat = before.lookat + _FOLLOWING * (aim.lookat - before.lookat)
            aim = View(lookat, before.distance + _FOLLOWING * (aim.distance - before.distance))
        self._shown = (np.array(goal), aim)
        return aim

    def _points_to_show(self, goal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return points [n, 3] and radii [n] of what the picture must show: the maze, or the robot and the goal.

        A robot that stands beside the walls, such as an arm at its bins, is shown with them.
        """
        robot = _corners_of_geoms(self._env.model, self._data, self._robot)
        maze = self._maze
        if maze is not None and (robot[:, :2] >= maze[0, :2]).all() and (robot[:, :2] <= maze[-1, :2]).all():
            return maze, np.zeros(len(maze))
        points = [robot, self._env.marker(goal)[None], self._marks, *([] if maze is None else [maze])]
        radii = np.zeros(sum(map(len, points)))
        radii[len(robot)] = self._env.spec.success_radius
        return np.concatenate(points), radii

    @property
    def _aspect(self) -> float:
        return self._renderer.width / self._renderer.height


def require_size(env: GoalEnv, *, width: Any, height: Any) -> None:
    """Check the size of a picture, in pixels.

    Raises:
        ValueError: one of them is not a whole number from 1 to the largest size that the model allows.
    """
    room = env.model.vis.global_  # <visual><global offwidth= offheight=/></visual> of the model file
    for name, size, usual, limit in (("width", width, 640, room.offwidth), ("height", height, 480, room.offheight)):
        if not (isinstance(size, int) and 1 <= size <= limit):
            detail = f"{name} must be a whole number of pixels from 1 to {limit}, not {size!r}; try {min(usual, limit)}"
            raise ValueError(f"a picture of {env.spec.name}: {detail}")


def frame(
    points: np.ndarray, *, radii: np.ndarray, angles_deg: tuple[float, float], fov_deg: float, aspect: float
) -> View:
    """Return the nearest view that shows spheres around `points: [n, 3]` with `radii: [n]`, all in meters.

    Each edge of the picture is a plane through the camera. The outermost sphere fixes that plane, and the planes of two
    opposite edges meet at the camera.

    Args:
        points: centers of the spheres.
        radii: 0 shows the center only.
        angles_deg: azimuth and elevation.
        fov_deg: the vertical field of view.
        aspect: the width of a picture / its height.
    """
    azimuth, elevation = np.radians(angles_deg)
    ahead = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    right = np.array([np.sin(azimuth), -np.cos(azimuth), 0.0])
    up = np.cross(right, ahead)
    depth = points @ ahead
    middle = (depth.min() + depth.max()) / 2
    lookat, distance = middle * ahead, 0.0
    slope = math.tan(math.radians(fov_deg) / 2)
    for direction, slant in ((right, slope * aspect), (up, slope)):
        across, room = points @ direction, radii * math.hypot(1, slant)
        above = float((across - slant * depth + room).max())
        below = float((-across - slant * depth + room).max())
        lookat += (above - below) / 2 * direction
        distance = max(distance, middle + (above + below) / (2 * slant))
    return View(lookat, _MARGIN * distance)


@functools.cache
def make_ready() -> None:
    """Select the first OpenGL backend that works, for this process.

    Raises:
        CannotDrawError: no backend works.
    """
    wanted, device = os.environ.get("MUJOCO_GL"), os.environ.get(_EGL_DEVICE)
    os.environ["MUJOCO_GL"] = choose_backend(wanted, works=_draws, egl_device=device)
    importlib.reload(gl_context)  # MuJoCo reads the variable at import only; its renderer uses this module


def choose_backend(wanted: str | None, *, works: Callable[..., bool], egl_device: str | None = None) -> str:
    """Return the OpenGL backend to draw with, as a value of `MUJOCO_GL`.

    Args:
        wanted: the user's `MUJOCO_GL`, if set.
        works: returns whether a backend draws, given its name and optionally `ignoring`, an environment variable.
        egl_device: the user's `MUJOCO_EGL_DEVICE_ID`, if set.

    Raises:
        CannotDrawError: `wanted` does not work. Without `wanted`: no backend works.
    """
    candidates = (wanted,) if wanted else _BACKENDS.get(sys.platform, ("glfw",))
    for backend in candidates:
        if works(backend):
            return backend
    if egl_device is not None and "egl" in candidates and works("egl", ignoring=_EGL_DEVICE):
        raise CannotDrawError(f"{_EGL_DEVICE}={egl_device} names no device that EGL draws on; unset it, or try 0")
    if wanted:
        raise CannotDrawError(
            f"MUJOCO_GL={wanted} does not work on this machine; unset it to try EGL and OSMesa, or set egl, osmesa or "
            "glfw"
        )
    raise CannotDrawError("neither EGL nor OSMesa works on this machine; on Debian: apt-get install libegl1 libosmesa6")


def _draws(backend: str, *, ignoring: str = "") -> bool:
    """Try `backend` in a separate process, without the environment variable `ignoring`."""
    environment = {name: value for name, value in os.environ.items() if name != ignoring} | {"MUJOCO_GL": backend}
    trial = [sys.executable, "-P", "-c", _TRIAL]
    try:
        done = subprocess.run(trial, env=environment, capture_output=True, timeout=_TRIAL_S, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _corners_of_maze(env: GoalEnv) -> np.ndarray | None:
    """Return the corners [8, 3] of the box around the walls, lowest first; None without walls."""
    if not env.floor_plan():
        return None
    data = mujoco.MjData(env.model)
    mujoco.mj_kinematics(env.model, data)
    walls = _corners_of_geoms(env.model, data, np.flatnonzero(_visible(env.model) & _fixed(env.model)))
    return _corners(walls.min(axis=0), walls.max(axis=0))


def _corners(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return the corners [..., 8, 3] of boxes from `low: [..., 3]` to `high: [..., 3]`."""
    ends = np.stack([low, high])
    return np.stack([ends[[x, y, z], ..., [0, 1, 2]].T for x, y, z in itertools.product((0, 1), repeat=3)], axis=-2)


def _visible(model: mujoco.MjModel) -> np.ndarray:
    return (model.geom_group < scenery.UNSEEN) & (model.geom_type != mujoco.mjtGeom.mjGEOM_PLANE)


def _fixed(model: mujoco.MjModel) -> np.ndarray:
    return model.body_weldid[model.geom_bodyid] == 0


def _geoms_of_robot(model: mujoco.MjModel) -> np.ndarray:
    """Return the indices of the visible geoms that move, and of fixed ones that touch them: the base of an arm."""
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    moving, fixed = (np.flatnonzero(_visible(model) & kind).tolist() for kind in (~_fixed(model), _fixed(model)))
    base = [geom for geom in fixed if any(_touch(model, data, geom, other) for other in moving)]
    return np.array(moving + base)


def _touch(model: mujoco.MjModel, data: mujoco.MjData, one: int, other: int) -> bool:
    return mujoco.mj_geomDistance(model, data, one, other, _TOUCHING_M, None) < _TOUCHING_M


def _corners_of_marks(model: mujoco.MjModel) -> np.ndarray:
    """Return the corners [8 * marks, 3] of the boxes that are drawn on the floor or a table, as sites of the world."""
    marks = np.flatnonzero((model.site_bodyid == 0) & (model.site_type == mujoco.mjtGeom.mjGEOM_BOX))
    places, half = model.site_pos[marks], model.site_size[marks]
    return _corners(places - half, places + half).reshape(-1, 3)


def _corners_of_geoms(model: mujoco.MjModel, data: mujoco.MjData, geoms: np.ndarray) -> np.ndarray:
    """Return the corners [8 * geoms, 3] of the boxes around geoms, each along the axes of its own geom."""
    middle, half = np.split(model.geom_aabb[geoms], 2, axis=1)
    turns = data.geom_xmat[geoms].reshape(-1, 3, 3)
    corners = np.einsum("gij,gcj->gci", turns, _corners(middle - half, middle + half))
    return (corners + data.geom_xpos[geoms, None]).reshape(-1, 3)


def _shadow_m(env: GoalEnv, maze: np.ndarray | None) -> float:
    """Return the distance from the camera's target up to which shadows are drawn."""
    return 3 * env.model.stat.extent if maze is None else 1.8 * float(np.linalg.norm(maze[-1] - maze[0]))


def _part_boxes(scene: mujoco.MjvScene, *, by: float) -> None:
    """Draw each wall a little lower than the one before. Where tops share a plane, light would be counted twice."""
    static = (geom for geom in scene.geoms[: scene.ngeom] if geom.category == mujoco.mjtCatBit.mjCAT_STATIC)
    kind = (mujoco.mjtObj.mjOBJ_GEOM, mujoco.mjtGeom.mjGEOM_BOX)  # not sites: marks would sink into the floor
    for index, wall in enumerate(geom for geom in static if (geom.objtype, geom.type) == kind):
        wall.pos[2] -= index * by


def _follow_with_sun(scene: mujoco.MjvScene, lookat: np.ndarray) -> None:
    """Move the sun so that shadows are drawn around the camera's target."""
    for light in scene.lights[: scene.nlight]:
        if not light.headlight and light.type == mujoco.mjtLightType.mjLIGHT_DIRECTIONAL:
            light.pos = lookat - _SUN_M * light.dir


def _add_ball(
    scene: mujoco.MjvScene, place: np.ndarray, *, radius: float, rgba: tuple[float, float, float, float]
) -> None:
    """Add a sphere to the picture. The model does not change."""
    mujoco.mjv_initGeom(
        scene.geoms[scene.ngeom],
        mujoco.mjtGeom.mjGEOM_SPHERE,
        np.full(3, radius),
        np.asarray(place, float),
        np.eye(3).ravel(),
        np.asarray(rgba, np.float32),
    )
    scene.ngeom += 1
