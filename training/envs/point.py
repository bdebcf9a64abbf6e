"""Point mazes: a ball on two slides, pushed by two motors, between real walls.

Small enough to be solved within minutes on two cores: cells of 1 m, a ball of 1 kg and radius 0.15 m, a force of up to
4 N along each axis, a control period of 0.16 s.
"""

# MuJoCo is compiled and ships no type information.
# pyright: reportAttributeAccessIssue=false

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from mujoco import mjx

from training.envs.base import EnvFacts, GoalEnv, Rectangle
from training.envs.mazes import LAYOUTS, Maze

CELL_M = 1.0
BALL_RADIUS_M = 0.15
_MASS_KG = 1.0
_DAMPING = 2.0  # N s/m
_FORCE_N = 4.0
_TIMESTEP_S = 0.04
_SUBSTEPS = 4
_WALL_HEIGHT_M = 0.5
_GOAL_NOISE_M = 0.2
_START_NOISE_M = 0.1

EPISODE_LENGTHS = {"point_u_maze": 100, "point_big_maze": 150, "point_hardest_maze": 200}


class PointMaze(GoalEnv):
    """The ball in a maze. State: position and velocity; goal: a position near the centre of a goal cell."""

    def __init__(self, name: str, *, impl: str = "jax") -> None:
        self.maze = Maze(LAYOUTS[name.removeprefix("point_")], cell=CELL_M)
        facts = EnvFacts(
            name=name,
            state_names=("x [m]", "y [m]", "vx [m/s]", "vy [m/s]"),
            goal_names=("x [m]", "y [m]"),
            action_names=("force x [N]", "force y [N]"),
            success_radius=0.3,
            episode_length=EPISODE_LENGTHS[name],
        )
        super().__init__(facts, build_model(self.maze), substeps=_SUBSTEPS, impl=impl)
        self._starts = jnp.asarray(self.maze.starts, jnp.float32)
        self._goals = jnp.asarray(self.maze.goals, jnp.float32)

    def sample_start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """At rest within 0.1 m of the start cell's centre, per axis."""
        return _near_one_of(key, self._starts, noise_m=_START_NOISE_M), jnp.zeros(2)

    def sample_goal(self, key: jax.Array) -> jax.Array:
        """Within 0.2 m of the centre of a goal cell, per axis; every goal cell is as likely."""
        return _near_one_of(key, self._goals, noise_m=_GOAL_NOISE_M)

    def sense(self, data: mjx.Data) -> jax.Array:
        """Position and velocity."""
        return jnp.concatenate([data.qpos, data.qvel])

    def achieved_goal(self, state: jax.Array) -> jax.Array:
        """The ball's position."""
        return state[..., :2]

    def floor_plan(self) -> tuple[Rectangle, ...]:
        """The walls within the border, and the border as four thin strips."""
        (x_low, y_low), (x_high, y_high) = self.maze.interior
        edge = 0.1
        border = (
            Rectangle((x_low - edge, y_low - edge), (x_low, y_high + edge)),
            Rectangle((x_high, y_low - edge), (x_high + edge, y_high + edge)),
            Rectangle((x_low, y_low - edge), (x_high, y_low)),
            Rectangle((x_low, y_high), (x_high, y_high + edge)),
        )
        return (*self.maze.obstacles, *border)


def build_model(maze: Maze) -> mujoco.MjModel:
    """The ball between the walls. The border is four planes, which nothing can pass; the rest few merged boxes.

    Only the ball collides (with walls), and it has no weight on the floor: contacts are what physics here costs.
    """
    spec = mujoco.MjSpec()
    spec.option.timestep = _TIMESTEP_S
    spec.option.solver = mujoco.mjtSolver.mjSOL_CG  # as exact as Newton's with two joints, and half the time to compile
    spec.option.iterations = 4
    spec.option.ls_iterations = 8
    _add_walls(spec, maze)
    ball = spec.worldbody.add_body(name="ball", pos=[0, 0, BALL_RADIUS_M])
    for axis, direction in (("x", [1, 0, 0]), ("y", [0, 1, 0])):
        joint = ball.add_joint(name=axis, type=mujoco.mjtJoint.mjJNT_SLIDE, axis=direction)
        joint.damping = [_DAMPING, 0, 0]  # the linear term, then those of higher order
        motor = spec.add_actuator(name=f"force {axis}", target=axis, trntype=mujoco.mjtTrn.mjTRN_JOINT)
        motor.ctrlrange = [-_FORCE_N, _FORCE_N]
        motor.ctrllimited = True
    ball.add_geom(
        name="ball",
        type=mujoco.mjtGeom.mjGEOM_SPHERE,
        size=[BALL_RADIUS_M, 0, 0],
        mass=_MASS_KG,
        condim=1,
        contype=0,
        conaffinity=1,
    )
    return spec.compile()


def _add_walls(spec: mujoco.MjSpec, maze: Maze) -> None:
    walls = {"condim": 1, "contype": 1, "conaffinity": 0}
    (x_low, y_low), (x_high, y_high) = maze.interior
    half = np.sqrt(0.5)
    border = {  # a plane's normal is its z axis, here turned to point into the maze
        "west": ([x_low, 0, 0], [half, 0, half, 0]),
        "east": ([x_high, 0, 0], [half, 0, -half, 0]),
        "south": ([0, y_low, 0], [half, -half, 0, 0]),
        "north": ([0, y_high, 0], [half, half, 0, 0]),
    }
    for name, (position, quaternion) in border.items():
        spec.worldbody.add_geom(
            name=name, type=mujoco.mjtGeom.mjGEOM_PLANE, size=[1, 1, 0.1], pos=position, quat=quaternion, **walls
        )
    for index, (low, high) in enumerate(maze.obstacles):
        spec.worldbody.add_geom(
            name=f"wall {index}",
            type=mujoco.mjtGeom.mjGEOM_BOX,
            size=[(high[0] - low[0]) / 2, (high[1] - low[1]) / 2, _WALL_HEIGHT_M / 2],
            pos=[(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, _WALL_HEIGHT_M / 2],
            **walls,
        )


def _near_one_of(key: jax.Array, centres: jax.Array, *, noise_m: float) -> jax.Array:
    """A uniformly chosen row of `centres: [n, 2]`, moved by uniform noise of up to `noise_m` per axis."""
    choice_key, noise_key = jax.random.split(key)
    centre = centres[jax.random.randint(choice_key, (), 0, len(centres))]
    return centre + jax.random.uniform(noise_key, (2,), minval=-noise_m, maxval=noise_m)
