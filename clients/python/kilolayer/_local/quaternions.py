"""Quaternions in states and goals: give q and -q, which describe the same rotation, the same numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_SIZE = 4
_LEAST_NORMAL = np.finfo(np.float32).tiny


def canonical_signs(values: NDArray[np.float32], starts: Sequence[int]) -> NDArray[np.float32]:
    """Return `values: [rows, n]` with the sign of each quaternion chosen: its first value that is not 0 is positive.

    In quaternions, numbers closer to 0 than the normal ones of float32 become 0, as in a server.

    Args:
        values: is not changed.
        starts: the index of the first value (w) of each quaternion (w, x, y, z).
    """
    if not starts:
        return values
    values = values.copy()
    for start in starts:
        quaternion = values[:, start : start + _SIZE]
        zero = np.abs(quaternion) < _LEAST_NORMAL
        first = np.take_along_axis(quaternion, (~zero).argmax(axis=1)[:, None], axis=1)
        values[:, start : start + _SIZE] = np.where(zero, 0, np.where(first < 0, -quaternion, quaternion))
    return values
