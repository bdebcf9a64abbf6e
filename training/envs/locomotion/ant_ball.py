"""The ant with a ball that must reach the goal, in the open and in a maze.

The ball has a radius of 0.5 m and weighs 0.58 kg. It slides without friction on the floor or with the ant. Torso and
feet push it, walls stop it.
"""

# MuJoCo is compiled and ships no type information.
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from mujoco import mjx

from training.envs.building import walls
from training.envs.building.mazes import LAYOUTS, Maze
from training.envs.core.goal_env import Rectangle
from training.envs.core.physics import WarpSizes
from training.envs.locomotion import ant
from training.envs.locomotion.ant import FEET, Ant, ant_spec
from training.envs.locomotion.ant_maze import BALL, CELL_M, FLOOR, WALL_HEIGHT_M, WALLS, collide

GOAL_DISTANCE_M = 5.0
BALL_RADIUS_M = 0.5
_MASS_KG = 1.1 * 4 / 3 * np.pi * BALL_RADIUS_M**3  # the published ball consists of two spheres with densities 1 and 0.1
_REACH_M = 10.3  # limit of the ball's slides
_ON_THE_WAY = 0.2  # center of the ball's start positions, as a fraction of the way to the goal
_BALL_OFFSET_M = 1.0
_CONTACTS = 12  # with walls and ball at one time; the deepest are kept


class AntBall(Ant):
    """Push the ball to a point on a circle of 5 m.

    State: that of the ant, then the ball's position. Goal: a position for the ball.
    """

    warp_sizes = WarpSizes(
        contacts=16, rows=48
    )  # also with the ball at feet and torso, which is rare under random actions

    def __init__(self, name: str, *, impl: str = "jax", model: mujoco.MjModel | None = None) -> None:
        model = build_model() if model is None else model
        super().__init__(name, model=model, impl=impl, more_state_names=("ball x [m]", "ball y [m]"))

    def sample_task(self, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The ant standing in the middle, the ball ahead of it.

        The ball is 1 m from the point a fifth of the way to the goal, on the half circle away from the ant, which it
        would overlap otherwise.
        """
        start_key, goal_key, ball_key = jax.random.split(key, 3)
        goal = self.sample_goal(goal_key)
        turn = jax.random.uniform(ball_key, minval=-jnp.pi / 2, maxval=jnp.pi / 2)
        angle = jnp.arctan2(goal[1], goal[0]) + turn
        ball = _ON_THE_WAY * goal + _BALL_OFFSET_M * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
        qpos, qvel = super().sample_start(start_key)
        return jnp.concatenate([qpos, ball]), jnp.concatenate([qvel, jnp.zeros(2)]), goal

    def sample_start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A start without its goal, with the distribution of `sample_task`."""
        qpos, qvel, _ = self.sample_task(key)
        return qpos, qvel

    def sample_goal(self, key: jax.Array) -> jax.Array:
        """A uniformly random point on the circle."""
        angle = jax.random.uniform(key, maxval=2 * jnp.pi)
        return GOAL_DISTANCE_M * jnp.stack([jnp.cos(angle), jnp.sin(angle)])

    def sense(self, data: mjx.Data) -> jax.Array:
        """The ant's positions and velocities, the ball's position."""
        return jnp.concatenate([super().sense(data), data.qpos[ant.NQ :]])

    def achieved_goal(self, state: jax.Array) -> jax.Array:
        """The ball's position."""
        return state[..., -2:]


class AntBallMaze(AntBall):
    """Push the ball through a maze to the center of a goal cell."""

    def __init__(self, name: str, *, impl: str = "jax") -> None:
        self.maze = Maze(LAYOUTS["ball_maze"], cell=CELL_M)
        super().__init__(name, model=build_model(self.maze), impl=impl)

    def sample_task(self, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The ant near the center of its cell, the ball at the center of its own, a uniformly random goal cell."""
        start_key, goal_key = jax.random.split(key)
        qpos, qvel = Ant.sample_start(self, start_key)
        qpos = qpos.at[:2].add(jnp.asarray(self.maze.starts[0], jnp.float32))
        ball = jnp.asarray(self.maze.balls[0], jnp.float32)
        return jnp.concatenate([qpos, ball]), jnp.concatenate([qvel, jnp.zeros(2)]), self.sample_goal(goal_key)

    def sample_goal(self, key: jax.Array) -> jax.Array:
        """The center of a uniformly random goal cell."""
        return jax.random.choice(key, jnp.asarray(self.maze.goals, jnp.float32))

    def floor_plan(self) -> tuple[Rectangle, ...]:
        """The walls."""
        return walls.floor_plan(self.maze)


def build_model(maze: Maze | None = None) -> mujoco.MjModel:
    """Return the ant and its ball, between the walls of `maze` if there is one."""
    spec = ant_spec()
    if maze is None:
        collide_with_ball_only(spec)
    else:
        walls.add_walls(spec, maze, height_m=WALL_HEIGHT_M, condim=1, contype=WALLS, conaffinity=0, priority=1)
        collide(spec, meets=WALLS | BALL)
        spec.add_numeric(name="max_contact_points", data=[_CONTACTS])
    ball = spec.worldbody.add_body(name="ball", pos=[0, 0, BALL_RADIUS_M])
    for axis, direction in (("x", [1, 0, 0]), ("y", [0, 1, 0])):
        joint = ball.add_joint(name=f"ball {axis}", type=mujoco.mjtJoint.mjJNT_SLIDE, axis=direction)
        joint.armature = 0
        joint.damping = [0, 0, 0]
        joint.limited = maze is None
        joint.range = [-_REACH_M, _REACH_M]
    ball.add_geom(
        name="ball",
        type=mujoco.mjtGeom.mjGEOM_SPHERE,
        size=[BALL_RADIUS_M, 0, 0],
        mass=_MASS_KG,
        condim=1,
        priority=1,
        contype=BALL,
        conaffinity=WALLS,
        rgba=[0.9, 0.9, 0.9, 1],
    )
    return spec.compile()


def collide_with_ball_only(spec: mujoco.MjSpec) -> None:
    """Let the ant's torso and feet collide with the ball."""
    spec.geom("torso_geom").conaffinity = BALL
    for foot in FEET:
        geom = spec.geom(foot)
        geom.contype, geom.conaffinity = FLOOR, BALL
