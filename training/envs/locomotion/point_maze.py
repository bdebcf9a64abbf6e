"""Point mazes: a ball on two slides, pushed by two motors, between walls.

They are small enough to be solved within minutes on two CPU cores: cells of 1 m, a ball of 1 kg with radius 0.15 m, a
force of up to 4 N along each axis, a control period of 0.16 s.
"""

# MuJoCo is compiled and ships no type information.
# pyright: reportAttributeAccessIssue=false

import jax
import jax.numpy as jnp
import mujoco
from mujoco import mjx

from training.envs.building import scenery, walls
from training.envs.building.mazes import LAYOUTS, Maze, sample_near
from training.envs.core.goal_env import EnvSpec, GoalEnv, Rectangle
from training.envs.core.physics import WarpSizes

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
    """The ball in a maze. State: position and velocity. Goal: a position near the center of a goal cell."""

    warp_sizes = WarpSizes(contacts=8, rows=8)

    def __init__(self, name: str, *, impl: str = "jax") -> None:
        self.maze = Maze(LAYOUTS[name.removeprefix("point_")], cell=CELL_M)
        env_spec = EnvSpec(
            name=name,
            state_names=("x [m]", "y [m]", "vx [m/s]", "vy [m/s]"),
            goal_names=("x [m]", "y [m]"),
            action_names=("force x [N]", "force y [N]"),
            success_radius=0.3,
            episode_length=EPISODE_LENGTHS[name],
        )
        super().__init__(env_spec, build_model(self.maze), substeps=_SUBSTEPS, impl=impl)
        self._starts = jnp.asarray(self.maze.starts, jnp.float32)
        self._goals = jnp.asarray(self.maze.goals, jnp.float32)

    def sample_start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """At rest within 0.1 m of the start cell's center, per axis."""
        return sample_near(key, self._starts, noise_m=_START_NOISE_M), jnp.zeros(2)

    def sample_goal(self, key: jax.Array) -> jax.Array:
        """Within 0.2 m of the center of a uniformly random goal cell, per axis."""
        return sample_near(key, self._goals, noise_m=_GOAL_NOISE_M)

    def sense(self, data: mjx.Data) -> jax.Array:
        """Position and velocity."""
        return jnp.concatenate([data.qpos, data.qvel])

    def achieved_goal(self, state: jax.Array) -> jax.Array:
        """The ball's position."""
        return state[..., :2]

    def floor_plan(self) -> tuple[Rectangle, ...]:
        """The walls."""
        return walls.floor_plan(self.maze)


def build_model(maze: Maze) -> mujoco.MjModel:
    """Return the ball between walls: four planes as the border, which nothing can pass, and boxes inside.

    The ball collides with walls only and does not rest on the floor, because contacts dominate the cost of the physics.
    """
    spec = mujoco.MjSpec()
    spec.option.timestep = _TIMESTEP_S
    spec.option.solver = mujoco.mjtSolver.mjSOL_CG  # as accurate as Newton with two joints, and compiles twice as fast
    spec.option.iterations = 4
    spec.option.ls_iterations = 8
    walls.add_walls(spec, maze, height_m=_WALL_HEIGHT_M, condim=1, contype=1, conaffinity=0)
    ball = spec.worldbody.add_body(name="ball", pos=[0, 0, BALL_RADIUS_M])
    for axis, direction in (("x", [1, 0, 0]), ("y", [0, 1, 0])):
        joint = ball.add_joint(name=axis, type=mujoco.mjtJoint.mjJNT_SLIDE, axis=direction)
        joint.damping = [_DAMPING, 0, 0]  # linear term, then higher orders
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
    scenery.add_scenery(spec)
    scenery.paint(ball)
    return spec.compile()
