"""Pictures of an environment: the robot, its goal in green, everything around, drawn by MuJoCo without a screen.

MuJoCo draws with OpenGL, through EGL or OSMesa. Whether one of them works is only known once it has drawn, and one that
does not can end the process. So each is tried in a process of its own before this one uses it; `MUJOCO_GL`, where the
user has set it, is the only one tried.
"""

# MuJoCo is compiled and ships no type information.
# pyright: reportAttributeAccessIssue=false

import atexit
import functools
import importlib
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

_BACKENDS = {"linux": ("egl", "osmesa"), "darwin": ("cgl",)}  # elsewhere a hidden window of GLFW's
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
_MARGIN = 1.08  # how much further away than just fitting
_FOLLOWING = 0.15  # the share of its way that the camera goes per picture
_CORE = 0.3, 0.012  # the radius of the goal's middle, as a share of the success radius, and of the camera's distance
_SUN_M = 10.0


class CannotDrawError(RuntimeError):
    """No pictures can be drawn on this machine; the message says what to install."""


class View(NamedTuple):
    """Where a camera is: what it looks at, in metres, and from how far."""

    lookat: np.ndarray  # [3]
    distance: float


class Camera:
    """Draws `env`. A maze is seen whole; elsewhere the camera keeps robot and goal in the picture. Close it when done.

    Args:
        width, height: of a picture, in pixels.

    Raises:
        ValueError: a picture would be larger than the model draws, or empty.
        CannotDrawError: neither EGL nor OSMesa works on this machine.
    """

    def __init__(self, env: GoalEnv, *, width: int = 640, height: int = 480) -> None:
        require_size(env, width=width, height=height)
        make_ready()
        self._env = env
        self._angles_deg, self._maze = env.view(), _bounds_of_maze(env)
        # only what is seen depends on it: shadows end there, and the nearer that is, the finer they are
        env.model.vis.map.shadowclip = _shadow_m(env, self._maze) / env.model.stat.extent
        self._renderer = mujoco.Renderer(env.model, height, width)
        # a context that is left to the interpreter's end finds EGL already gone, and complains
        atexit.register(self._renderer.close)
        self._data = mujoco.MjData(env.model)
        self._moving = np.flatnonzero(env.model.body_weldid[env.model.geom_bodyid])
        self._shown: tuple[np.ndarray, View] | None = None  # the goal of the last picture, and where from

    def picture(self, qpos: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Draw the joint positions `qpos: [nq]` and the commanded `goal: [goal_dim]`: [height, width, 3] uint8."""
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
        """Give the OpenGL context back."""
        atexit.unregister(self._renderer.close)
        self._renderer.close()

    def __enter__(self) -> "Camera":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _follow(self, goal: np.ndarray) -> View:
        """From where the picture is taken: at once after a new goal, else gently."""
        low, high = self._maze or self._bounds_of_robot_and(goal)
        fov_deg = self._env.model.vis.global_.fovy
        aim = frame(low, high, angles_deg=self._angles_deg, fov_deg=fov_deg, aspect=self._aspect)
        if self._shown is not None and np.array_equal(self._shown[0], goal):
            before = self._shown[1]
            lookat = before.lookat + _FOLLOWING * (aim.lookat - before.lookat)
            aim = View(lookat, before.distance + _FOLLOWING * (aim.distance - before.distance))
        self._shown = (np.array(goal), aim)
        return aim

    def _bounds_of_robot_and(self, goal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The box around all that moves, and the goal."""
        around = self._env.model.geom_rbound[self._moving, None]
        places = self._data.geom_xpos[self._moving]
        marker, radius = self._env.marker(goal), self._env.spec.success_radius
        low = np.minimum((places - around).min(axis=0), marker - radius)
        return low, np.maximum((places + around).max(axis=0), marker + radius)

    @property
    def _aspect(self) -> float:
        return self._renderer.width / self._renderer.height


def require_size(env: GoalEnv, *, width: Any, height: Any) -> None:
    """Refuse a picture's size in pixels that `env` cannot be drawn in.

    Raises:
        ValueError: one of them is not a whole number, below 1, or above what the model leaves room for.
    """
    room = env.model.vis.global_  # <visual><global offwidth= offheight=/></visual> of the model file
    for name, size, usual, limit in (("width", width, 640, room.offwidth), ("height", height, 480, room.offheight)):
        if not (isinstance(size, int) and 1 <= size <= limit):
            detail = f"{name} must be a whole number of pixels from 1 to {limit}, not {size!r}; try {min(usual, limit)}"
            raise ValueError(f"a picture of {env.spec.name}: {detail}")


def frame(low: np.ndarray, high: np.ndarray, *, angles_deg: tuple[float, float], fov_deg: float, aspect: float) -> View:
    """The nearest view from which the box from `low` to `high`, each [3] in metres, is seen whole.

    Args:
        angles_deg: azimuth and elevation.
        fov_deg: the vertical field of view.
        aspect: a picture's width over its height.
    """
    azimuth, elevation = np.radians(angles_deg)
    ahead = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    right = np.array([np.sin(azimuth), -np.cos(azimuth), 0.0])
    up = np.cross(right, ahead)
    lookat = (low + high) / 2
    corners = np.array(np.meshgrid(*zip(low - lookat, high - lookat, strict=True))).reshape(3, 8).T
    slope = math.tan(math.radians(fov_deg) / 2)
    needed = np.maximum(np.abs(corners @ right) / (slope * aspect), np.abs(corners @ up) / slope) - corners @ ahead
    return View(lookat, _MARGIN * float(needed.max()))


@functools.cache
def make_ready() -> None:
    """Make this process draw with the first backend that works.

    Raises:
        CannotDrawError: none does.
    """
    wanted, device = os.environ.get("MUJOCO_GL"), os.environ.get(_EGL_DEVICE)
    os.environ["MUJOCO_GL"] = choose_backend(wanted, works=_draws, egl_device=device)
    importlib.reload(gl_context)  # MuJoCo reads the variable once, when it is imported; its renderer looks here


def choose_backend(wanted: str | None, *, works: Callable[..., bool], egl_device: str | None = None) -> str:
    """The OpenGL backend to draw with, as `MUJOCO_GL` names it.

    Args:
        wanted: what the user has set `MUJOCO_GL` to, if anything.
        works: whether the backend so named draws; told `ignoring`, without that variable of the environment.
        egl_device: what the user has set `MUJOCO_EGL_DEVICE_ID` to, if anything.

    Raises:
        CannotDrawError: `wanted` does not work, or, without it, none.
    """
    candidates = (wanted,) if wanted else _BACKENDS.get(sys.platform, ("glfw",))
    for backend in candidates:
        if works(backend):
            return backend
    if egl_device is not None and "egl" in candidates and works("egl", ignoring=_EGL_DEVICE):
        raise CannotDrawError(f"{_EGL_DEVICE}={egl_device} names no device that EGL draws on; unset it, or try 0")
    if wanted:
        raise CannotDrawError(
            f"MUJOCO_GL={wanted} draws nothing here; unset it to have EGL and OSMesa tried, or say egl, osmesa or glfw"
        )
    raise CannotDrawError("neither EGL nor OSMesa is there to draw with; on Debian: apt-get install libegl1 libosmesa6")


def _draws(backend: str, *, ignoring: str = "") -> bool:
    """Whether a process of its own gets a picture out of `backend`, without the variable `ignoring`."""
    environment = {name: value for name, value in os.environ.items() if name != ignoring} | {"MUJOCO_GL": backend}
    trial = [sys.executable, "-P", "-c", _TRIAL]
    try:
        done = subprocess.run(trial, env=environment, capture_output=True, timeout=_TRIAL_S, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _bounds_of_maze(env: GoalEnv) -> tuple[np.ndarray, np.ndarray] | None:
    """The box around the walls, if there are any, drawn flat: what stands out of it is within the margin."""
    if not (walls := env.floor_plan()):
        return None
    lows, highs = (np.array(corners) for corners in zip(*walls, strict=True))
    return np.append(lows.min(axis=0), 0.0), np.append(highs.max(axis=0), 0.0)


def _shadow_m(env: GoalEnv, maze: tuple[np.ndarray, np.ndarray] | None) -> float:
    """How far from what is looked at shadows shall be drawn."""
    return 3 * env.model.stat.extent if maze is None else 1.8 * float(np.linalg.norm(maze[1] - maze[0]))


def _part_boxes(scene: mujoco.MjvScene, *, by: float) -> None:
    """Draw every wall a little lower than the one before: where tops lie in one plane, light would count twice."""
    static = (geom for geom in scene.geoms[: scene.ngeom] if geom.category == mujoco.mjtCatBit.mjCAT_STATIC)
    kind = (mujoco.mjtObj.mjOBJ_GEOM, mujoco.mjtGeom.mjGEOM_BOX)  # no site: a mark on the floor would sink into it
    for index, wall in enumerate(geom for geom in static if (geom.objtype, geom.type) == kind):
        wall.pos[2] -= index * by


def _follow_with_sun(scene: mujoco.MjvScene, lookat: np.ndarray) -> None:
    """Keep the part of the world in which shadows are drawn around what is looked at."""
    for light in scene.lights[: scene.nlight]:
        if not light.headlight and light.type == mujoco.mjtLightType.mjLIGHT_DIRECTIONAL:
            light.pos = lookat - _SUN_M * light.dir


def _add_ball(
    scene: mujoco.MjvScene, place: np.ndarray, *, radius: float, rgba: tuple[float, float, float, float]
) -> None:
    """Add a sphere to what is drawn, and to nothing else."""
    mujoco.mjv_initGeom(
        scene.geoms[scene.ngeom],
        mujoco.mjtGeom.mjGEOM_SPHERE,
        np.full(3, radius),
        np.asarray(place, float),
        np.eye(3).ravel(),
        np.asarray(rgba, np.float32),
    )
    scene.ngeom += 1
