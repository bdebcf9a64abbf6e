"""The ant and a large box, which it must push out of the way to reach a cell behind it.

Cells of 8 m, seen from above with y pointing up. The ant starts in the cell at the origin, the box M fills the cell at
(8, 8), and the goals are in the free cells above it and to its right:

    AABCC
    AA.CC
    D.M.E
    D..FF
    GGGFF

The box slides without turning, and every wall is wider than the box, so wherever they touch, a corner of the box is
involved. Walls therefore collide only with spheres at its corners.
"""

# MuJoCo is compiled and ships no type information.
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

import jax
import jax.numpy as jnp
import mujoco
from mujoco import mjx

from training.envs.building import scenery
from training.envs.building.walls import add_stand_in
from training.envs.core.goal_env import Rectangle
from training.envs.core.physics import WarpSizes
from training.envs.locomotion import ant
from training.envs.locomotion.ant import Ant, ant_spec
from training.envs.locomotion.ant_maze import BALL, WALLS, collide

_WALLS_M = {  # name: low and high corner on the floor
    "A": ((-12, 12), (4, 28)),
    "B": ((4, 20), (12, 28)),
    "C": ((12, 12), (28, 28)),
    "D": ((-12, -4), (-4, 12)),
    "E": ((20, 4), (28, 12)),
    "F": ((12, -12), (28, 4)),
    "G": ((-12, -12), (12, -4)),
}
_WALL_HEIGHT_M = 4.0
_BOX_START_M = (8.0, 8.0)
_BOX_HALF_M = (3.6, 3.6, 1.8)
_BOX_MASS_KG = 1.0
_BOX_DAMPING = 10.0  # N s/m
_CORNER_RADIUS_M = 0.3
_START_HEIGHT_M = 0.75
_GOAL_M = ((16.0, 8.0), (8.0, 16.0))
_GOAL_NOISE_M = 2.0
_SOLIMP = (0.995, 0.995, 0.01, 0.5, 2.0)  # hard contacts of the ant
_CONTACTS = 12  # with walls and box at one time; the deepest are kept


class AntPush(Ant):
    """Push the box away and walk to a point behind it.

    State: that of the ant, then the box's position. Goal: the torso's position on the floor.
    """

    warp_sizes = WarpSizes(contacts=16, rows=56)  # also with box and walls, which random actions do not reach

    def __init__(self, name: str, *, impl: str = "jax") -> None:
        super().__init__(name, model=build_model(), impl=impl, more_state_names=("box x [m]", "box y [m]"))

    def sample_start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The ant standing at the origin, with noise; the box in its cell, at rest."""
        qpos, qvel = super().sample_start(key)
        qpos = qpos.at[2].add(_START_HEIGHT_M - ant.START_HEIGHT_M)
        return jnp.concatenate([qpos, jnp.asarray(_BOX_START_M)]), jnp.concatenate([qvel, jnp.zeros(2)])

    def sample_goal(self, key: jax.Array) -> jax.Array:
        """In one of the two cells behind the box, up to 2 m further along both axes."""
        cell_key, place_key = jax.random.split(key)
        cell = jax.random.choice(cell_key, jnp.asarray(_GOAL_M))
        return cell + jax.random.uniform(place_key, (2,), maxval=_GOAL_NOISE_M)

    def sense(self, data: mjx.Data) -> jax.Array:
        """The ant's positions and velocities, the box's position."""
        return jnp.concatenate([super().sense(data), data.qpos[ant.NQ :]])

    def floor_plan(self) -> tuple[Rectangle, ...]:
        """The walls, without the box, which moves."""
        return tuple(Rectangle(low, high) for low, high in _WALLS_M.values())


def build_model() -> mujoco.MjModel:
    """Return the ant, the walls and the box."""
    spec = ant_spec(density=ant.PUSH_DENSITY)
    spec.option.iterations = 4
    spec.option.ls_iterations = 8
    collide(spec, meets=WALLS | BALL)
    for geom in spec.geoms:
        geom.solimp = _SOLIMP
    for name, (low, high) in _WALLS_M.items():
        _add_box(
            spec.worldbody,
            name=name,
            half=((high[0] - low[0]) / 2, (high[1] - low[1]) / 2, _WALL_HEIGHT_M / 2),
            pos=((low[0] + high[0]) / 2, (low[1] + high[1]) / 2, _WALL_HEIGHT_M / 2),
            contype=WALLS,
            rgba=scenery.WALL,
        )
    half_x, half_y, half_z = _BOX_HALF_M
    box = spec.worldbody.add_body(name="box", pos=[0, 0, half_z])
    for axis, direction in (("x", [1, 0, 0]), ("y", [0, 1, 0])):
        joint = box.add_joint(name=f"box {axis}", type=mujoco.mjtJoint.mjJNT_SLIDE, axis=direction)
        joint.limited = False
        joint.armature = 0
        joint.damping = [_BOX_DAMPING, 0, 0]
    _add_box(box, name="box", half=_BOX_HALF_M, pos=(0, 0, 0), contype=BALL, mass=_BOX_MASS_KG, rgba=[0.8, 0.5, 0.2, 1])
    for index, (x, y) in enumerate(((-1, -1), (-1, 1), (1, -1), (1, 1))):
        place = (x * (half_x - _CORNER_RADIUS_M), y * (half_y - _CORNER_RADIUS_M), 0.0)
        add_stand_in(box, f"corner {index}", radius_m=_CORNER_RADIUS_M, meets=WALLS, place=place)
    spec.add_numeric(name="max_contact_points", data=[_CONTACTS])
    return spec.compile()


def _add_box(
    body: mujoco.MjsBody, *, name: str, half: tuple[float, ...], pos: tuple[float, ...], contype: int, **more: object
) -> None:
    """Add a box that collides, without friction, with geoms that have `contype` in their affinity."""
    geom = mujoco.mjtGeom.mjGEOM_BOX
    body.add_geom(
        name=name, type=geom, size=half, pos=pos, condim=1, priority=1, contype=contype, conaffinity=0, **more
    )
