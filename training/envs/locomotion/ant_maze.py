"""The ant in mazes with cells of 4 m, their evaluation layouts, and variants by distance along a corridor.

`ant_u_maze_gen_1f2f3f` starts anywhere in the corridor, with the goal one, two or three cells ahead (generalization,
arXiv 2503.14858, section 4.6). `ant_u_maze_eval_4f5f6f` starts at the maze's start, with the goal four to six cells
ahead.

Feet and torso collide with the walls, without friction, because contacts dominate the cost of the physics. A massless
sphere replaces the torso and the four stubs that carry the legs, which reach 0.36 m from the torso's center. Feet do
not collide with one another.
"""

# MuJoCo is compiled and ships no type information.
# pyright: reportAttributeAccessIssue=false

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from training.envs.building import walls
from training.envs.building.mazes import LAYOUTS, LayoutError, Maze
from training.envs.core.goal_env import Rectangle
from training.envs.core.physics import WarpSizes
from training.envs.locomotion.ant import FEET, Ant, ant_spec

CELL_M = 4.0
WALL_HEIGHT_M = 2.0
_HULL_RADIUS_M = 0.36
FLOOR, WALLS, BALL = 1, 2, 4  # bits of contype and conaffinity
_CONTACTS = 8  # with walls at one time, hull and feet in a corner; the deepest are kept. The floor's four are separate

NAMES = tuple(f"ant_{layout}" for layout in LAYOUTS if layout != "ball_maze")
DISTANCES = re.compile(r"ant_(?P<layout>u[2-7]?_maze)_(?P<kind>gen|eval)_(?P<cells>(\d+f)+)")


class AntMaze(Ant):
    """Walk through a maze to the center of a goal cell. State and goal are those of the ant."""

    warp_sizes = WarpSizes(contacts=16, rows=48)

    def __init__(self, name: str, *, impl: str = "jax") -> None:
        variant = DISTANCES.fullmatch(name)
        self.maze = Maze(LAYOUTS[variant["layout"] if variant else name.removeprefix("ant_")], cell=CELL_M)
        tasks = _along_the_corridor(self.maze, variant) if variant else _to_any_goal(self.maze)
        self._starts, self._goals = (jnp.asarray(column, jnp.float32) for column in (tasks.starts, tasks.goals))
        self._probabilities = jnp.asarray(tasks.probabilities, jnp.float32)
        super().__init__(name, model=build_model(self.maze), impl=impl)

    def sample_task(self, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Standing near the center of a start cell, with a goal that belongs to it."""
        task_key, start_key = jax.random.split(key)
        task = jax.random.choice(task_key, len(self._probabilities), p=self._probabilities)
        qpos, qvel = super().sample_start(start_key)
        return qpos.at[:2].add(self._starts[task]), qvel, self._goals[task]

    def sample_start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A start without its goal, with the distribution of `sample_task`."""
        qpos, qvel, _ = self.sample_task(key)
        return qpos, qvel

    def sample_goal(self, key: jax.Array) -> jax.Array:
        """A goal without its start, with the distribution of `sample_task`."""
        return self._goals[jax.random.choice(key, len(self._probabilities), p=self._probabilities)]

    def floor_plan(self) -> tuple[Rectangle, ...]:
        """The walls."""
        return walls.floor_plan(self.maze)


class _Tasks(NamedTuple):
    """Pairs of start and goal, in meters, and their probabilities."""

    starts: np.ndarray  # [tasks, 2]
    goals: np.ndarray  # [tasks, 2]
    probabilities: np.ndarray  # [tasks], with sum 1


def _to_any_goal(maze: Maze) -> _Tasks:
    """Return the pairs of the start and each goal cell, equally likely."""
    goals = maze.goals
    return _Tasks(np.repeat(maze.starts[:1], len(goals), axis=0), goals, np.full(len(goals), 1 / len(goals)))


def _along_the_corridor(maze: Maze, variant: re.Match[str]) -> _Tasks:
    """Return the pairs for the distances in `variant`, each equally likely; for gen, from each cell that leaves room.

    Raises:
        LayoutError: a distance is longer than the corridor.
    """
    corridor, distances = maze.corridor, [int(cells) for cells in re.findall(r"\d+", variant["cells"])]
    longest = len(corridor) - 1
    if not all(1 <= distance <= longest for distance in distances):
        raise LayoutError(f"{variant[0]}: {variant['layout']} has distances of 1 to {longest} cells, not {distances}")
    tasks: list[tuple[np.ndarray, np.ndarray, float]] = []
    for distance in distances:
        begins = range(len(corridor) - distance) if variant["kind"] == "gen" else range(1)
        share = 1 / len(distances) / len(begins)
        tasks += [(corridor[begin], corridor[begin + distance], share) for begin in begins]
    return _Tasks(*(np.array(column) for column in zip(*tasks, strict=True)))


def build_model(maze: Maze) -> mujoco.MjModel:
    """Return the ant between walls."""
    spec = ant_spec()
    walls.add_walls(spec, maze, height_m=WALL_HEIGHT_M, condim=1, contype=WALLS, conaffinity=0, priority=1)
    collide(spec, meets=WALLS)
    spec.add_numeric(name="max_contact_points", data=[_CONTACTS])
    return spec.compile()


def collide(spec: mujoco.MjSpec, *, meets: int) -> None:
    """Let the ant's feet, and a hull around its torso, collide with geoms that share a bit of `meets` in `contype`."""
    walls.add_stand_in(spec.body("torso"), "hull", radius_m=_HULL_RADIUS_M, meets=meets)
    for foot in FEET:
        geom = spec.geom(foot)
        geom.contype, geom.conaffinity = FLOOR, meets
