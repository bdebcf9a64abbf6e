"""What a call costs, compared with a call of known cost on the same machine: both take longer on a slow one."""

import time
from collections.abc import Callable

import numpy as np

_CALLS = 1000
_ROUNDS = 10
_LOW, _HIGH = np.zeros((2, 1, 6), np.float32)


def in_comparisons(call: Callable[[], object]) -> float:
    """Return the processor time of `call`, in units of one comparison of two arrays of six numbers (about 1 us)."""
    rounds = [(_taken_s(call), _taken_s(_compare)) for _ in range(_ROUNDS)]
    own_s, comparison_s = (min(taken) for taken in zip(*rounds, strict=True))
    return own_s / comparison_s


def _compare() -> bool:
    return bool((_LOW <= _HIGH).all())


def _taken_s(call: Callable[[], object]) -> float:
    """Return the processor time of this thread for many calls."""
    began_s = time.thread_time()
    for _ in range(_CALLS):
        call()
    return time.thread_time() - began_s
