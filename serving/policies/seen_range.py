"""SeenRange: which states a policy saw in training, and whether a request's are far from them.

A value is out of range if it is more than 5 standard deviations below the smallest value that training saw, or above
the largest one. A value that never varied in training has a tolerance of 0.001 instead. The bounds are float32 numbers,
rounded inwards, so that comparing a float32 with them gives exactly what comparing it with the unrounded ones would.
"""

import numpy as np

from policy.spec import QUATERNION_SIZE, PolicySpec
from serving.engine.engine import Kind

_DEVIATIONS = 5.0
_CONSTANT_TOLERANCE = 1e-3  # of a value that never varied
_ROUNDING = 1e-6  # relative spread of a constant value that is computed anew for every state, as in training
# No statistics of goals are stored, and some policies have none of states. Training at such sizes is not plausible.
_PLAUSIBLE = 1e6


class SeenRange:
    """The range of the states that the policy with the specification `spec` saw in training.

    If `spec` has no statistics of states, every state is in range.
    """

    def __init__(self, spec: PolicySpec) -> None:
        self._spec = spec
        self._state_dim = spec.state_dim
        self._low, self._high = _bounds(spec) if spec.seen_low else (None, None)
        self._quaternions = spec.state_quaternions

    def contains(self, state: np.ndarray) -> bool:
        """Return whether every state of `state: [rows, state_dim]` float32, finite, is in range."""
        if self._low is None:
            return True
        if self._quaternions:
            state = _canonical(state, self._quaternions)
        return not (np.count_nonzero(state < self._low) or np.count_nonzero(state > self._high))

    def complaint(self, state: np.ndarray) -> str:
        """Return one sentence about the first value of `state` that is out of range; some value must be."""
        assert self._low is not None
        assert self._high is not None
        state = _canonical(state, self._quaternions)
        row, column = np.argwhere((state < self._low) | (state > self._high))[0]
        low, high = self._low[0, column], self._high[0, column]
        return (
            f"{self._spec.state_names[column]} of row {row} (the first is 0) is {state[row, column]:.9g}; the range"
            f" that training saw, with 5 standard deviations on each side, is {low:g} to {high:g}"
        )

    def explains(self, kind: Kind, rows: np.ndarray) -> bool:
        """Return whether `rows`, whose results are not finite, are the cause of that, not the policy.

        They are if each has a state out of range, or a value beyond every plausible one.

        Args:
            rows: [rows, columns of `kind`] float32, finite, at least one.
        """
        spec = self._spec
        state = rows[:, : spec.state_dim]
        goal_start = spec.state_dim + (spec.chunk_dim if kind is Kind.SCORE else 0)
        goal = rows[:, goal_start : goal_start + spec.goal_dim]
        is_extreme = (np.abs(goal) > _PLAUSIBLE).any(axis=1)
        if self._low is None:
            is_extreme |= (np.abs(state) > _PLAUSIBLE).any(axis=1)
        else:
            state = _canonical(state, self._quaternions)
            is_extreme |= ((state < self._low) | (state > self._high)).any(axis=1)
        return bool(is_extreme.all())


def _bounds(spec: PolicySpec) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest and the largest values that are in range, [1, state_dim] float32.

    With the shape of a single state, comparing one takes half the time.
    """
    low, high, std = (np.array([numbers], np.float64) for numbers in (spec.seen_low, spec.seen_high, spec.seen_std))
    is_constant = (low == high) | (std <= _ROUNDING * np.maximum(np.abs(low), np.abs(high)))
    tolerance = np.maximum(_DEVIATIONS * std, np.where(is_constant, _CONSTANT_TOLERANCE, 0))
    return -_rounded_down(tolerance - low), _rounded_down(high + tolerance)


def _rounded_down(numbers: np.ndarray) -> np.ndarray:
    """Return the largest float32 numbers that are not above `numbers`, float64."""
    with np.errstate(over="ignore"):  # beyond every float32: infinite
        nearest = numbers.astype(np.float32)
    return np.where(nearest > numbers, np.nextafter(nearest, np.float32(-np.inf)), nearest)


def _canonical(state: np.ndarray, starts: tuple[int, ...]) -> np.ndarray:
    """Return `state: [rows, state_dim]` with the signs of its quaternions as in training (`policy.quaternions`).

    Args:
        starts: the column of the first value of each quaternion.
    """
    canonical = state
    for start in starts:
        quaternion = state[:, start : start + QUATERNION_SIZE]
        first = quaternion[:, :1]
        if not np.count_nonzero(first <= 0):
            continue
        if np.count_nonzero(first) < len(first):  # a rare case: the first value that is not 0 decides
            first = np.take_along_axis(quaternion, (quaternion != 0).argmax(axis=1, keepdims=True), axis=1)
        if canonical is state:
            canonical = state.copy()
        canonical[:, start : start + QUATERNION_SIZE] = quaternion * np.sign(first)
    return canonical
