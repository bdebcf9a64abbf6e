"""Convert what a caller or a file gives to float32 arrays."""

import numpy as np
from numpy.typing import ArrayLike

_OTHER_KINDS = "bcSUMm"  # of numpy: truth values, complex numbers, text, dates and durations


def as_float32(values: ArrayLike) -> np.ndarray:
    """Return `values` as float32. Values that are too large for it become infinite, without a warning.

    Raises:
        ValueError: they are not real numbers, or have no common shape. The message is a part of a sentence.
    """
    given = np.asarray(values)
    if given.dtype.kind in _OTHER_KINDS:
        raise ValueError(f"real numbers are needed, got {given.dtype}")
    try:
        with np.errstate(over="ignore"):
            return np.asarray(given, np.float32)
    except TypeError as error:
        raise ValueError(str(error)) from error
