"""Where a robot's bodies are and how they move, worked out from positions and velocities alone.

A physics step leaves the bodies where they were before its last integration, so what is sensed of them is worked out
anew, once per control step. Only what both MJX implementations can do is used.
"""

# MuJoCo is compiled and ships no type information.
# pyright: reportAttributeAccessIssue=false

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from mujoco import mjx


def placed(model: mjx.Model, data: mjx.Data) -> mjx.Data:
    """`data` with its bodies, sites and motion axes where its positions say."""
    return mjx.com_pos(model, mjx.kinematics(model, data))


class Motion:
    """The velocities of a model's bodies."""

    def __init__(self, model: mujoco.MjModel) -> None:
        self._root = model.body_rootid
        self._moved_by = jnp.asarray(_ancestor_dofs(model))

    def velocities(self, data: mjx.Data) -> jax.Array:
        """MuJoCo's `cvel` [nbody, 6] in the world's axes: angular, then linear at the whole tree's centre of mass.

        Args:
            data: `placed`.
        """
        return self._moved_by @ (data.cdof * data.qvel[:, None])

    def linear_velocity(self, data: mjx.Data, body: int, *, point: jax.Array) -> jax.Array:
        """The velocity in m/s, [3], of what is at `point: [3]` in the world and moves with `body`."""
        velocity = self.velocities(data)[body]
        return velocity[3:] + jnp.cross(velocity[:3], point - data.subtree_com[self._root[body]])


def inertias(model: mujoco.MjModel, data: mjx.Data) -> jax.Array:
    """MuJoCo's `cinert` [nbody, 10]: xx, yy, zz, xy, xz, yz, mass times offset (3), mass.

    The inertia in kg m^2 about the centre of mass of the whole tree, in the world's axes; the offset in m.

    Args:
        data: `placed`.
    """
    mass = jnp.asarray(model.body_mass, jnp.float32)
    offset = data.xipos - data.subtree_com[model.body_rootid]
    own = jnp.einsum("bij,bj,bkj->bik", data.ximat, jnp.asarray(model.body_inertia, jnp.float32), data.ximat)
    apart = jnp.sum(offset**2, axis=1)[:, None, None] * jnp.eye(3) - offset[:, :, None] * offset[:, None, :]
    inertia = own + mass[:, None, None] * apart
    rows, columns = np.array([0, 1, 2, 0, 0, 1]), np.array([0, 1, 2, 1, 2, 2])
    return jnp.concatenate([inertia[:, rows, columns], mass[:, None] * offset, mass[:, None]], axis=1)


def _ancestor_dofs(model: mujoco.MjModel) -> np.ndarray:
    """Which degrees of freedom move which body, [nbody, nv]."""
    moved = np.zeros((model.nbody, model.nv), np.float32)
    for body in range(1, model.nbody):  # a parent comes before its children
        moved[body] = moved[model.body_parentid[body]]
        first, count = model.body_dofadr[body], model.body_dofnum[body]
        moved[body, first : first + count] = 1
    return moved
