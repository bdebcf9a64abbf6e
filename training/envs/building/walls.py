"""The walls of a maze in a MuJoCo model: four planes as the border, which nothing can pass, and boxes inside."""

# MuJoCo is compiled and ships no type information.
# pyright: reportAttributeAccessIssue=false

import mujoco
import numpy as np

from training.envs.building import scenery
from training.envs.building.mazes import Maze
from training.envs.core.goal_env import Rectangle

_EDGE_M = 0.1  # thickness of the drawn border


def add_walls(spec: mujoco.MjSpec, maze: Maze, *, height_m: float, **contact: int) -> None:
    """Add the walls of `maze` to the world.

    Args:
        contact: the geoms' `contype`, `conaffinity`, `condim` and `priority`.
    """
    (x_low, y_low), (x_high, y_high) = maze.interior
    half = np.sqrt(0.5)
    border = {  # a plane's normal is its z axis, rotated to point into the maze
        "west": ([x_low, 0, 0], [half, 0, half, 0]),
        "east": ([x_high, 0, 0], [half, 0, -half, 0]),
        "south": ([0, y_low, 0], [half, -half, 0, 0]),
        "north": ([0, y_high, 0], [half, half, 0, 0]),
    }
    for name, (position, quaternion) in border.items():
        spec.worldbody.add_geom(
            name=name,
            type=mujoco.mjtGeom.mjGEOM_PLANE,
            size=[1, 1, 0.1],
            pos=position,
            quat=quaternion,
            group=scenery.UNSEEN,
            **contact,
        )
    for index, obstacle in enumerate(maze.obstacles):
        _add_box(spec, obstacle, name=f"wall {index}", height_m=height_m, **contact)
    for name, strip in zip(border, _border(maze), strict=True):  # a plane is invisible from behind
        _add_box(spec, strip, name=f"{name} seen", height_m=height_m, contype=0, conaffinity=0)
    if (floor := spec.geom("floor")) is not None:
        floor.size = [0, 0, 1]  # infinite when drawn: a maze can be larger than the floor of a robot's model


def add_stand_in(
    body: mujoco.MjsBody, name: str, *, radius_m: float, meets: int, place: tuple[float, float, float] = (0, 0, 0)
) -> None:
    """Add a sphere without mass, not drawn, that collides with geoms that share a bit of `meets` in their `contype`."""
    body.add_geom(
        name=name,
        type=mujoco.mjtGeom.mjGEOM_SPHERE,
        size=[radius_m, 0, 0],
        pos=list(place),
        mass=0,
        contype=0,
        conaffinity=meets,
        group=scenery.UNSEEN,
    )


def floor_plan(maze: Maze) -> tuple[Rectangle, ...]:
    """Return the walls inside the border, and the border as four thin strips."""
    return *maze.obstacles, *_border(maze)


def _border(maze: Maze) -> tuple[Rectangle, Rectangle, Rectangle, Rectangle]:
    """Return the strips that are drawn as the border: west, east, south, north."""
    (x_low, y_low), (x_high, y_high) = maze.interior
    return (
        Rectangle((x_low - _EDGE_M, y_low - _EDGE_M), (x_low, y_high + _EDGE_M)),
        Rectangle((x_high, y_low - _EDGE_M), (x_high + _EDGE_M, y_high + _EDGE_M)),
        Rectangle((x_low, y_low - _EDGE_M), (x_high, y_low)),
        Rectangle((x_low, y_high), (x_high, y_high + _EDGE_M)),
    )


def _add_box(spec: mujoco.MjSpec, place: Rectangle, *, name: str, height_m: float, **contact: int) -> None:
    (x_low, y_low), (x_high, y_high) = place
    spec.worldbody.add_geom(
        name=name,
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[(x_high - x_low) / 2, (y_high - y_low) / 2, height_m / 2],
        pos=[(x_low + x_high) / 2, (y_low + y_high) / 2, height_m / 2],
        rgba=scenery.WALL,
        material="",
        **contact,
    )
