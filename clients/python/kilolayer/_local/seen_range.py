"""SeenRange: which states a policy saw in training, and whether others are far from them, as a server decides it.

A value is out of range if it is more than 5 standard deviations below the smallest value that training saw, or above
the largest one. A value that never varied in training has a tolerance of 0.001 instead. The bounds are float32 numbers,
rounded inwards, so that comparing a float32 with them gives what comparing it with the unrounded ones would.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kilolayer._local.quaternions import canonical_signs

_DEVIATIONS = 5.0
_CONSTANT_TOLERANCE = 1e-3  # of a value that never varied
_ROUNDING = 1e-6  # relative spread of a constant value that is computed anew for every state, as in training
_PLAUSIBLE = 1e6  # no training has larger goals; a policy has no statistics of goals


class SeenRange:
    """The range of the states that a policy saw in training. Without statistics, every state is in range.

    Args:
        low: [state_dim] or empty, smallest values that training saw.
        high: the largest ones.
        std: their standard deviations.
        quaternions: index of the first value of each quaternion in the state.
    """

    def __init__(
        self, low: Sequence[float], high: Sequence[float], *, std: Sequence[float], quaternions: Sequence[int]
    ) -> None:
        self._quaternions = quaternions
        self._low = self._high = None
        if low:
            self._low, self._high = _bounds(np.array(low), np.array(high), std=np.array(std))

    def contains(self, state: NDArray[np.float32]) -> bool:
        """Return whether every state of `state: [rows, state_dim]`, finite, is in range."""
        return not self._outside(state).any()

    def explains(self, state: NDArray[np.float32], goal: NDArray[np.float32]) -> bool:
        """Return whether these rows are the reason that their results are not finite, rather than the policy.

        They are if each row has a state out of range, or a value that is too large to be plausible.
        """
        is_extreme = (np.abs(goal) > _PLAUSIBLE).any(axis=1)
        states = np.abs(state) > _PLAUSIBLE if self._low is None else self._outside(state)
        return bool((is_extreme | states.any(axis=1)).all())

    def _outside(self, state: NDArray[np.float32]) -> NDArray[np.bool_]:
        if self._low is None or self._high is None:
            return np.zeros(state.shape, np.bool_)
        state = canonical_signs(state, self._quaternions)
        return (state < self._low) | (state > self._high)


def _bounds(
    low: NDArray[np.float64], high: NDArray[np.float64], *, std: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the smallest and the largest values that are in range, [state_dim] float32."""
    is_constant = (low == high) | (std <= _ROUNDING * np.maximum(np.abs(low), np.abs(high)))
    tolerance = np.maximum(_DEVIATIONS * std, np.where(is_constant, _CONSTANT_TOLERANCE, 0))
    return -_rounded_down(tolerance - low), _rounded_down(high + tolerance)


def _rounded_down(numbers: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the largest float32 numbers that are not above `numbers`."""
    with np.errstate(over="ignore"):  # beyond every float32: infinite
        nearest = numbers.astype(np.float32)
    return np.where(nearest > numbers, np.nextafter(nearest, np.float32(-np.inf)), nearest)
