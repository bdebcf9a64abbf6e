"""Measure the array sizes that Warp needs per environment: the largest numbers of contacts and constraint rows.

    python benchmarks/contact_sizes.py --envs ant_u_maze ant_big_maze

Runs random rollouts, of which some start next to walls if there are walls. The last printed line gives the values for
the `warp_sizes` of each class. Every pair of geoms that passes the broad phase needs the space of a contact, even if
the geoms do not touch.
"""

# MuJoCo is compiled and ships no type information.
# pyright: reportAttributeAccessIssue=false

import dataclasses
import math
from pathlib import Path
from typing import Any

import _record
import jax
import mujoco
import numpy as np
import tyro
from mujoco.mjx.third_party import mujoco_warp as mjw
from mujoco.mjx.third_party.mujoco_warp._src.collision_core import create_collision_context

from training.envs import registry
from training.envs.building.mazes import Maze
from training.envs.core.goal_env import GoalEnv

_HEADROOM = 1.5
_UNIT = 8  # sizes are multiples of it
_HELD_STEPS = 20  # control steps with the same action, so that robots press against walls


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure the largest numbers of contacts and constraint rows per world."""

    json: Path | None = None
    """File for the record."""
    envs: tuple[str, ...] = registry.names()
    """Environments to measure."""
    worlds: int = 64
    """Number of parallel rollouts."""
    steps: int = 200
    """Control steps per rollout."""
    quick: bool = False
    """One environment, few worlds and steps: checks that the script works; the figures mean nothing."""


def main() -> None:
    """Measure, and write the record."""
    options = tyro.cli(Options)
    if options.quick:
        options = dataclasses.replace(options, envs=("point_u_maze",), worlds=4, steps=5)
    about = _record.machine()
    rows = [measure(options, env) for env in options.envs]
    families = sorted({row["family"] for row in rows})
    notes = "to set: " + "; ".join(f"{family}.warp_sizes = {advice(rows, family)}" for family in families)
    _record.report("array sizes that Warp needs, per world", rows, about=about, json_file=options.json, notes=notes)


def advice(rows: list[dict[str, Any]], family: str) -> str:
    """Return the recommended `warp_sizes` of a class."""
    own = [row for row in rows if row["family"] == family]
    contacts = max(max(row["pairs"], row["contacts"]) for row in own)
    constraints = max(row["rows"] for row in own)
    return f"WarpSizes(contacts={with_headroom(contacts)}, rows={with_headroom(constraints)})"


def with_headroom(most: int) -> int:
    """Return the recommended size if `most` were needed."""
    return _UNIT * max(1, math.ceil(_HEADROOM * most / _UNIT))


def measure(options: Options, name: str) -> dict[str, Any]:
    """Return one row of the table."""
    env = registry.make(name, impl="warp")
    room = 8 * _possible_pairs(env.model)  # two boxes touch at up to eight points
    model = mjw.put_model(env.model)
    model.opt.warn_overflow = 0
    data = mjw.make_data(env.model, nworld=options.worlds, nconmax=room, njmax=10 * room + 4 * env.model.nv)
    random = np.random.default_rng(0)
    starts = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), options.worlds)).pipeline_state
    data.qpos.assign(_some_at_walls(env, np.array(starts.qpos), random))
    data.qvel.assign(np.array(starts.qvel))
    most = np.zeros(3, int)
    for step in range(options.steps):
        if step % _HELD_STEPS == 0:
            data.ctrl.assign(_pushes(env, options.worlds, random))
        for _ in range(env.substeps):
            mjw.step(model, data)
            most = np.maximum(most, [_most_pairs(model, data), _most_contacts(data), data.nefc.numpy().max()])
    pairs, contacts, rows = most.tolist()
    return {
        "environment": name,
        "family": type(env).__name__,
        "worlds": options.worlds,
        "steps": options.steps,
        "pairs": pairs,
        "contacts": contacts,
        "rows": rows,
        "set now": str(env.warp_sizes and dataclasses.astuple(env.warp_sizes)),
    }


def _possible_pairs(model: mujoco.MjModel) -> int:
    return max(1, len(mjw.put_model(model).nxn_geom_pair_filtered))


def _most_pairs(model: mjw.Model, data: mjw.Data) -> int:
    """Return the number of pairs that pass the broad phase, in the world with most."""
    context = create_collision_context(data.naconmax)
    data.ncollision.zero_()
    mjw.nxn_broadphase(model, data, context)
    return _most_of_a_world(context.collision_worldid.numpy()[: data.ncollision.numpy()[0]])


def _most_contacts(data: mjw.Data) -> int:
    return _most_of_a_world(data.contact.worldid.numpy()[: data.nacon.numpy()[0]])


def _most_of_a_world(worlds: np.ndarray) -> int:
    return int(np.bincount(worlds, minlength=1).max())


def _some_at_walls(env: GoalEnv, positions: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """In a maze, place half of the robots [worlds, nq] anywhere in the open cells: at walls and in corners."""
    maze = getattr(env, "maze", None)
    if isinstance(maze, Maze):
        half = len(positions) // 2
        cells = random.choice(np.argwhere(~maze.walls), half)
        positions[:half, :2] = maze.cell * (cells + random.uniform(-0.5, 0.5, (half, 2)))
    return positions


def _pushes(env: GoalEnv, worlds: int, random: np.random.Generator) -> np.ndarray:
    """Draw controls [worlds, nu], half of them at their limits."""
    low, high = np.array(env.action_low), np.array(env.action_high)
    share = random.uniform(0, 1, (worlds, env.action_size))
    share[::2] = share[::2].round()
    return (low + share * (high - low)).astype(np.float32)


if __name__ == "__main__":
    main()
