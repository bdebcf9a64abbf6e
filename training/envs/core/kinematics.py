"""Poses, velocities and inertias of a robot's bodies, computed from joint positions and velocities.

After a physics step, `data` has the bodies' poses from before the last integration. They are therefore computed again
for the state, once per control step, with functions that both MJX implementations support.
"""

# MuJoCo is compiled and ships no type information.
# pyright: reportAttributeAccessIssue=false

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from mujoco import mjx


def update_poses(model: mjx.Model, data: mjx.Data) -> mjx.Data:
    """Return `data` with bodies, sites and motion axes at its joint positions."""
    return mjx.com_pos(model, mjx.kinematics(model, data))


class BodyVelocities:
    """The velocities of a model's bodies."""

    def __init__(self, model: mujoco.MjModel) -> None:
        self._root = model.body_rootid
        self._moved_by = jnp.asarray(_ancestor_dofs(model))

    def velocities(self, data: mjx.Data) -> jax.Array:
        """Return MuJoCo's `cvel` [nbody, 6] in world axes: angular, then linear at the whole tree's center of mass.

        Args:
            data: from `update_poses`.
        """
        return self._moved_by @ (data.cdof * data.qvel[:, None])

    def linear_velocity(self, data: mjx.Data, body: int, *, point: jax.Array) -> jax.Array:
        """Return the velocity [3] in m/s of the point of `body` at `point: [3]` in world coordinates."""
        velocity = self.velocities(data)[body]
        return velocity[3:] + jnp.cross(velocity[:3], point - data.subtree_com[self._root[body]])


def inertias(model: mujoco.MjModel, data: mjx.Data) -> jax.Array:
    """Return MuJoCo's `cinert` [nbody, 10]: xx, yy, zz, xy, xz, yz, mass times offset (3), mass.

    The inertia is in kg m^2 about the center of mass of the whole tree, in world axes; the offset is in m.

    Args:
        data: from `update_poses`.
    """
    mass = jnp.asarray(model.body_mass, jnp.float32)
    offset = data.xipos - data.subtree_com[model.body_rootid]
    own = jnp.einsum("bij,bj,bkj->bik", data.ximat, jnp.asarray(model.body_inertia, jnp.float32), data.ximat)
    apart = jnp.sum(offset**2, axis=1)[:, None, None] * jnp.eye(3) - offset[:, :, None] * offset[:, None, :]
    inertia = own + mass[:, None, None] * apart
    rows, columns = np.array([0, 1, 2, 0, 0, 1]), np.array([0, 1, 2, 1, 2, 2])
    return jnp.concatenate([inertia[:, rows, columns], mass[:, None] * offset, mass[:, None]], axis=1)


def _ancestor_dofs(model: mujoco.MjModel) -> np.ndarray:
    """Return which degrees of freedom move which body, [nbody, nv]."""
    moved = np.zeros((model.nbody, model.nv), np.float32)
    for body in range(1, model.nbody):  # a parent comes before its children
        moved[body] = moved[model.body_parentid[body]]
        first, count = model.body_dofadr[body], model.body_dofnum[body]
        moved[body, first : first + count] = 1
    return moved
