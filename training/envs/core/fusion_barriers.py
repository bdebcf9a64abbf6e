"""Keep XLA from computing a chain of bodies again for every body in it.

MJX computes the poses of bodies level by level from the root, each from its parent's. On a CPU, XLA's fusion (jaxlib
0.10) merges the levels into one kernel, which computes a parent again wherever it is used. The work doubles with every
level: the poses of an arm of ten links took 50 ms instead of 0.3 ms. An optimization barrier between levels avoids
this and changes no value. Robots with few levels are faster without it.
"""

from typing import Any

import jax
import numpy as np
from mujoco.mjx._src import scan

MIN_LEVELS = 7  # levels of bodies from which the barrier is faster
_body_tree = scan.body_tree


def install() -> None:
    """Add the barrier to MJX's pass over the bodies, for the whole process. Idempotent."""
    scan.body_tree = _body_tree_with_barriers


def _body_tree_with_barriers(model: Any, level: Any, in_types: str, out_types: str, *args: Any, **options: Any) -> Any:
    def apart(carry: Any, *inputs: Any) -> Any:
        return level(None if carry is None else jax.lax.optimization_barrier(carry), *inputs)

    chosen = apart if levels(model.body_parentid) >= MIN_LEVELS else level
    return _body_tree(model, chosen, in_types, out_types, *args, **options)


def levels(parents: np.ndarray) -> int:
    """Return the number of bodies in the longest chain, without the world, from each body's parent, [nbody]."""
    depth = np.zeros(len(parents), int)
    for body in range(1, len(parents)):  # a parent comes before its children
        depth[body] = depth[parents[body]] + 1
    return int(depth.max())
