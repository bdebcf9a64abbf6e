"""The humanoid in mazes with cells of 2 m and walls of 1 m.

Only spheres collide with the walls: the feet, and massless spheres for the parts that can be lower than a wall (the
pelvis with the upper ends of the thighs, the knees and the hands). Walls have no friction, because contacts dominate
the cost of the physics. A control step is three physics steps of 0.005 s.
"""

# MuJoCo is compiled and ships no type information.
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

import jax
import jax.numpy as jnp
import mujoco

from training.envs.building import walls
from training.envs.building.mazes import LAYOUTS, Maze
from training.envs.core.goal_env import Rectangle
from training.envs.core.physics import WarpSizes
from training.envs.locomotion.humanoid import FEET, GOAL_HEIGHT_M, Humanoid, humanoid_spec

CELL_M = 2.0
_SUBSTEPS = 3
_WALL_HEIGHT_M = 1.0
_FLOOR, _WALLS = 1, 2  # bits of contype and conaffinity
_CONTACTS = 8  # with walls at one time; the deepest are kept. The floor's two are separate
_STAND_INS = {  # name: the body it is fixed to, its position there and its radius, in m
    "hips": ("pelvis", (-0.01, 0.0, 0.0), 0.16),
    "right knee": ("right_shin", (0.0, 0.0, 0.0), 0.06),
    "left knee": ("left_shin", (0.0, 0.0, 0.0), 0.06),
    "right hand": ("right_lower_arm", (0.18, 0.18, 0.18), 0.04),
    "left hand": ("left_lower_arm", (0.18, -0.18, 0.18), 0.04),
}

_MAZES = {name: LAYOUTS[name] for name in ("u_maze", "u_maze_eval", "big_maze", "hardest_maze")} | {
    "big_maze_eval": LAYOUTS["big_maze_eval"].replace("#..#..g#", "#..#.gg#")  # with one goal more than the ant's maze
}
NAMES = tuple(f"humanoid_{layout}" for layout in _MAZES)


class HumanoidMaze(Humanoid):
    """Walk through a maze to the center of a goal cell, and stand there. State and goal are those of the humanoid."""

    warp_sizes = WarpSizes(contacts=16, rows=48)

    def __init__(self, name: str, *, impl: str = "jax") -> None:
        self.maze = Maze(_MAZES[name.removeprefix("humanoid_")], cell=CELL_M)
        self._goals = jnp.asarray(self.maze.goals, jnp.float32)
        super().__init__(name, model=build_model(self.maze), impl=impl, substeps=_SUBSTEPS)

    def sample_start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Upright above the center of the start cell, at rest, without noise."""
        qpos, qvel = super().sample_start(key)
        return qpos.at[:2].set(jnp.asarray(self.maze.starts[0], jnp.float32)), qvel

    def sample_goal(self, key: jax.Array) -> jax.Array:
        """The center of a uniformly random goal cell."""
        return jnp.append(jax.random.choice(key, self._goals), GOAL_HEIGHT_M)

    def floor_plan(self) -> tuple[Rectangle, ...]:
        """The walls."""
        return walls.floor_plan(self.maze)


def build_model(maze: Maze) -> mujoco.MjModel:
    """Return the humanoid between walls."""
    spec = humanoid_spec()
    walls.add_walls(spec, maze, height_m=_WALL_HEIGHT_M, condim=1, contype=_WALLS, conaffinity=0, priority=1)
    for name, (body, place, radius) in _STAND_INS.items():
        walls.add_stand_in(spec.body(body), name, radius_m=radius, meets=_WALLS, place=place)
    for foot in FEET:
        geom = spec.geom(foot)
        geom.contype, geom.conaffinity = _FLOOR, _WALLS
    spec.add_numeric(name="max_contact_points", data=[_CONTACTS])
    return spec.compile()
