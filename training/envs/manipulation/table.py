"""The arm's table, with a cube and, for some tasks, two bins.

Only the pairs named here collide: the cube with table, hand, fingers and walls; hand and fingers with table and walls.
The cube's contacts with table, hand and fingers have friction, the others have none. The cube stands on eight small
spheres at its corners, because for a tilted box under pressure MJX would find only the lowest corners. Walls are thin,
and their contacts as stiff as the physics step allows, so that the hand cannot press the cube through one.
"""

# MuJoCo is compiled and ships no type information.
# pyright: reportAttributeAccessIssue=false

import itertools
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import mujoco
import numpy as np

from training.envs.building import scenery
from training.envs.core.goal_env import Rectangle
from training.envs.manipulation import panda

CUBE_HALF_M = 0.03
TIMESTEP_S = 0.005
_DENSITY = 1000.0  # kg/m^3
_CORNER_RADIUS_M = 0.002
_WALL_HALF_M, _WALL_HEIGHT_M = 0.005, 0.066
_CONTACTS = 10  # with friction, and as many without: more than occur at one time
_BLUE, _RED = (0.25, 0.4, 0.75, 1), (0.75, 0.3, 0.25, 1)
_CUBE = (0.9, 0.65, 0.2, 1)  # a goal is green

Square = tuple[float, float, float]  # center and half-width, m
Color = tuple[float, float, float, float]


class Bins(NamedTuple):
    """Two open bins to the left and right of x = 0."""

    x: float  # of their centers, m
    inner_half: float  # m
    y: float = 0.6


def build_model(
    targets: Mapping[int, tuple[float, float]], *, cube: bool, marks: Iterable[Square] = (), bins: Bins | None = None
) -> mujoco.MjModel:
    """Return the arm at the table.

    Args:
        targets: the range of the servos' target angles, by joint, in rad.
        cube: whether there is a cube, and fingers to hold it.
        marks: squares that are drawn on the table.
    """
    spec = mujoco.MjSpec()
    spec.option.timestep = TIMESTEP_S
    spec.option.solver = mujoco.mjtSolver.mjSOL_NEWTON
    spec.option.iterations = 3
    spec.option.ls_iterations = 4
    spec.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_EULERDAMP
    spec.worldbody.add_geom(name="table", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[0, 0, 0.1], **panda.NO_CONTACTS)
    scenery.add_scenery(spec, floor="table", tile_m=0.2)
    if cube:
        _add_cube(spec)
    movers = panda.add_panda(spec, targets, fingers=cube)
    for mover in movers:
        _collide(spec, "table", mover, condim=1)
        if cube:
            _collide(spec, "cube", mover, condim=3)
    for (x, y, half), color in zip(marks, (_BLUE, _RED), strict=False):
        spec.worldbody.add_site(type=mujoco.mjtGeom.mjGEOM_BOX, pos=[x, y, 0], size=[half, half, 0.001], rgba=color)
    if bins is not None:
        for index, wall in enumerate(walls(bins)):
            _add_wall(spec, f"wall {index}", wall, color=_BLUE if index < 4 else _RED, movers=movers)
    spec.add_numeric(name="max_contact_points", data=[_CONTACTS])
    return spec.compile()


def _add_cube(spec: mujoco.MjSpec) -> None:
    cube = spec.worldbody.add_body(name="cube", pos=[0, 0.6, CUBE_HALF_M])
    cube.add_freejoint(name="cube")
    cube.add_geom(
        name="cube",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[CUBE_HALF_M] * 3,
        density=_DENSITY,
        **panda.NO_CONTACTS,
        rgba=_CUBE,
    )
    for index, signs in enumerate(itertools.product((-1, 1), repeat=3)):
        corner = f"corner {index}"
        cube.add_geom(
            name=corner,
            type=mujoco.mjtGeom.mjGEOM_SPHERE,
            size=[_CORNER_RADIUS_M, 0, 0],
            pos=[sign * (CUBE_HALF_M - _CORNER_RADIUS_M) for sign in signs],
            mass=0,
            **panda.NO_CONTACTS,
            group=scenery.UNSEEN,
        )
        _collide(spec, "table", corner, condim=3)


def walls(bins: Bins) -> tuple[Rectangle, ...]:
    """Return the four walls of each bin, seen from above, the left bin's first."""
    inner, outer = bins.inner_half, bins.inner_half + 2 * _WALL_HALF_M
    sides = (  # of a bin around the origin
        Rectangle((-outer, -outer), (outer, -inner)),
        Rectangle((-outer, inner), (outer, outer)),
        Rectangle((-outer, -inner), (-inner, inner)),
        Rectangle((inner, -inner), (outer, inner)),
    )
    return tuple(
        Rectangle((low[0] + x, low[1] + bins.y), (high[0] + x, high[1] + bins.y))
        for x in (-bins.x, bins.x)
        for low, high in sides
    )


def _add_wall(spec: mujoco.MjSpec, name: str, wall: Rectangle, *, color: Color, movers: Iterable[str]) -> None:
    """Add a box that collides with the cube and `movers`."""
    low, high = np.array(wall.low), np.array(wall.high)
    top = _WALL_HEIGHT_M / 2
    spec.worldbody.add_geom(
        name=name,
        type=mujoco.mjtGeom.mjGEOM_BOX,
        pos=[*(low + high) / 2, top],
        size=[*(high - low) / 2, top],
        rgba=color,
        **panda.NO_CONTACTS,
    )
    for thing in ("cube", *movers):
        _collide(spec, thing, name, condim=1).solref = [2 * TIMESTEP_S, 1]


def _collide(spec: mujoco.MjSpec, first: str, second: str, *, condim: int) -> mujoco.MjsPair:
    return spec.add_pair(geomname1=first, geomname2=second, condim=condim)
