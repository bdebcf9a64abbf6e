"""The table that the arm works at: a cube on it, and two bins for it where the task has them.

Only pairs that are named here collide: the cube with table, hand, fingers and walls; hand and fingers with table and
walls. The cube's contacts with the table, the hand and the fingers have friction, the others none. Shapes are chosen
for what contacts cost in MJX: fingers are capsules, and a wall is two capsules, one above the other, within a box that
is only drawn. Of the contacts with walls the nearest count.
"""

# MuJoCo is compiled and ships no type information.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import mujoco

from training.envs import panda

CUBE_HALF_M = 0.03
TIMESTEP_S = 0.005
_DENSITY = 1000.0  # kg/m^3
_WALL_HALF_M, _WALL_HEIGHT_M = 0.005, 0.066
_RAILS_M = (0.025, _WALL_HEIGHT_M - _WALL_HALF_M)  # heights of a wall's capsules
# MJX reads these two, and finds each by its place among the model's numbers, so each is one number long.
_NEAREST_PAIRS = 6  # of walls with the cube, and of walls with hand and fingers, that are looked at
_DEEPEST_CONTACTS = 12  # of those with friction, and of those without, that count at once
_BLUE, _RED, _GREEN, _TABLE = (0.25, 0.4, 0.75, 1), (0.75, 0.3, 0.25, 1), (0.3, 0.6, 0.35, 1), (0.8, 0.78, 0.74, 1)

Square = tuple[float, float, float]  # centre and half-width, m


class Bins(NamedTuple):
    """Two open bins to the left and right of x = 0."""

    x: float  # of their centres, m
    inner_half: float  # m
    y: float = 0.6


def build_model(
    targets: Mapping[int, tuple[float, float]], *, cube: bool, marks: Iterable[Square] = (), bins: Bins | None = None
) -> mujoco.MjModel:
    """The arm at the table.

    Args:
        targets: what the arm's servos can be asked for, by joint, in rad.
        cube: whether there is a cube, and with it fingers to hold it.
        marks: squares to be drawn on the table.
    """
    spec = mujoco.MjSpec()
    spec.option.timestep = TIMESTEP_S
    spec.option.solver = mujoco.mjtSolver.mjSOL_NEWTON
    spec.option.iterations = 1
    spec.option.ls_iterations = 4
    spec.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_EULERDAMP
    spec.worldbody.add_light(pos=[0, 0, 3], dir=[0, 0, -1])
    spec.worldbody.add_geom(
        name="table", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[1.2, 1.2, 0.1], contype=0, conaffinity=0, rgba=_TABLE
    )
    if cube:
        _add_cube(spec)
    panda.add_panda(spec, targets, fingers=cube)
    movers = panda.COLLIDERS if cube else panda.COLLIDERS[:1]
    for mover in movers:
        _collide(spec, "table", mover, condim=1)
        if cube:
            _collide(spec, "cube", mover, condim=3)
    for (x, y, half), colour in zip(marks, (_BLUE, _RED), strict=False):
        spec.worldbody.add_site(type=mujoco.mjtGeom.mjGEOM_BOX, pos=[x, y, 0], size=[half, half, 0.001], rgba=colour)
    if bins is not None:
        for centre, colour in ((-bins.x, _BLUE), (bins.x, _RED)):
            _add_bin(spec, (centre, bins.y, bins.inner_half), colour, movers=movers)
        spec.add_numeric(name="max_geom_pairs", data=[_NEAREST_PAIRS])
        spec.add_numeric(name="max_contact_points", data=[_DEEPEST_CONTACTS])
    return spec.compile()


def _add_cube(spec: mujoco.MjSpec) -> None:
    cube = spec.worldbody.add_body(name="cube", pos=[0, 0.6, CUBE_HALF_M])
    cube.add_freejoint(name="cube")
    cube.add_geom(
        name="cube",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[CUBE_HALF_M] * 3,
        density=_DENSITY,
        contype=0,
        conaffinity=0,
        rgba=_GREEN,
    )
    _collide(spec, "cube", "table", condim=3)


def _add_bin(spec: mujoco.MjSpec, square: Square, colour: tuple[float, ...], *, movers: Iterable[str]) -> None:
    """Four walls around `square`."""
    x, y, inner = square
    middle, half = inner + _WALL_HALF_M, _WALL_HEIGHT_M / 2
    for side in (-1, 1):
        for across in (False, True):
            place = (x, y + side * middle) if across else (x + side * middle, y)
            length = inner + 2 * _WALL_HALF_M if across else inner
            reach = (length, _WALL_HALF_M) if across else (_WALL_HALF_M, length)
            spec.worldbody.add_site(
                type=mujoco.mjtGeom.mjGEOM_BOX, pos=[*place, half], size=[*reach, half], rgba=colour
            )
            for height in _RAILS_M:
                ends = (length, 0) if across else (0, length)
                rail = f"wall {x:+} {side:+} {'across' if across else 'along'} {height}"
                spec.worldbody.add_geom(
                    name=rail,
                    type=mujoco.mjtGeom.mjGEOM_CAPSULE,
                    fromto=[
                        place[0] - ends[0],
                        place[1] - ends[1],
                        height,
                        place[0] + ends[0],
                        place[1] + ends[1],
                        height,
                    ],
                    size=[_WALL_HALF_M, 0, 0],
                    contype=0,
                    conaffinity=0,
                    group=3,  # not drawn
                )
                _collide(spec, "cube", rail, condim=1)
                if height == max(_RAILS_M):
                    for mover in movers:
                        _collide(spec, mover, rail, condim=1)


def _collide(spec: mujoco.MjSpec, first: str, second: str, *, condim: int) -> None:
    spec.add_pair(geomname1=first, geomname2=second, condim=condim)
