"""Keep XLA from working out a chain of bodies anew for every body of it.

MJX places bodies from the root outwards, level by level, each from its parent's place. On a CPU, XLA's fusion (jaxlib
0.10) puts the levels into one kernel and computes a parent again wherever it is used, so that work doubles with every
level: an arm of ten links took 50 ms to place instead of 0.3. A barrier between levels ends this, and changes no value.
Robots of few levels are better off without.
"""

from typing import Any

import jax
import numpy as np
from mujoco.mjx._src import scan

LONG = 7  # levels of bodies from which the barrier pays
_body_tree = scan.body_tree


def install() -> None:
    """Put the barrier into MJX's pass over the bodies, for this whole process; a second call does nothing."""
    scan.body_tree = _body_tree_with_barriers


def _body_tree_with_barriers(model: Any, level: Any, in_types: str, out_types: str, *args: Any, **options: Any) -> Any:
    def apart(carry: Any, *inputs: Any) -> Any:
        return level(None if carry is None else jax.lax.optimization_barrier(carry), *inputs)

    chosen = apart if levels(model.body_parentid) >= LONG else level
    return _body_tree(model, chosen, in_types, out_types, *args, **options)


def levels(parents: np.ndarray) -> int:
    """How many bodies the longest chain has, the world's not counted, from each body's parent, [nbody]."""
    depth = np.zeros(len(parents), int)
    for body in range(1, len(parents)):  # a parent comes before its children
        depth[body] = depth[parents[body]] + 1
    return int(depth.max())
