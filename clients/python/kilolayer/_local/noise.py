"""The noise of sampled actions: only a seed, a row's number and a candidate's number determine it, as in a server.

The bits are those of the counter-based generator Threefry-2x32 with 20 rounds (Salmon et al. 2011, "Parallel random
numbers: as easy as 1, 2, 3"), with keys and counters as `jax.random` chooses them: a key is folded with a number by
encrypting (0, number), and the bits of value i are the two words of the encrypted (0, i), combined by exclusive or.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_Words = tuple[NDArray[np.uint32], NDArray[np.uint32]]

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA  # of the key schedule
_ONE = 0x3F800000  # the bits of 1.0
_LOW = np.nextafter(np.float32(-1), np.float32(0))  # smallest value of a uniform number, so that none is -1
# Giles 2010, "Approximating the erfinv function", single precision: highest power first.
_CENTRAL = (
    2.81022636e-08,
    3.43273939e-07,
    -3.5233877e-06,
    -4.39150654e-06,
    0.00021858087,
    -0.00125372503,
    -0.00417768164,
    0.246640727,
    1.50140941,
)
_TAIL = (
    -0.000200214257,
    0.000100950558,
    0.00134934322,
    -0.00367342844,
    0.00573950773,
    -0.0076224613,
    0.00943887047,
    1.00167406,
    2.83297682,
)


def seeded_noise(seed: int, *, rows: int, candidates: int, size: int) -> NDArray[np.float32]:
    """Return standard normal noise [rows * candidates, size]: all candidates of the first row come first.

    Args:
        seed: 64 bits.
        rows: number of rows of the call.
        candidates: number of actions that are sampled for each row.
        size: values in a row of noise.
    """
    return normal(uniform(random_bits(seed, rows=rows, candidates=candidates, size=size)))


def random_bits(seed: int, *, rows: int, candidates: int, size: int) -> NDArray[np.uint32]:
    """Return the uniform bits [rows * candidates, size] of the noise. The arguments are those of `seeded_noise`."""
    row = np.repeat(np.arange(rows, dtype=np.uint32), candidates)
    candidate = np.tile(np.arange(candidates, dtype=np.uint32), rows)
    key = np.full(1, seed >> 32, np.uint32), np.full(1, seed & 0xFFFFFFFF, np.uint32)
    key = _fold_in(_fold_in(key, row), candidate)
    counters = np.arange(size, dtype=np.uint32)[None, :]
    high, low = _threefry((key[0][:, None], key[1][:, None]), (np.zeros_like(counters), counters))
    return high ^ low


def uniform(bits: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Return a float32 number in (-1, 1) for each of `bits`: its upper 23 bits become the fraction of one in [1, 2)."""
    fraction = ((bits >> np.uint32(9)) | np.uint32(_ONE)).view(np.float32) - np.float32(1)
    return np.maximum(_LOW, fraction * np.float32(2) + _LOW)


def normal(uniform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the standard normal numbers whose distribution function has the values (1 + `uniform`) / 2."""
    weight = -np.log1p(-uniform * uniform)
    is_central = weight < 5
    power = np.where(is_central, weight - np.float32(2.5), np.sqrt(weight) - np.float32(3))
    inverse = np.zeros_like(uniform)
    for central, tail in zip(_CENTRAL, _TAIL):
        inverse = inverse * power + np.where(is_central, np.float32(central), np.float32(tail))
    return np.float32(np.sqrt(2)) * inverse * uniform


def _fold_in(key: _Words, number: NDArray[np.uint32]) -> _Words:
    return _threefry(key, (np.zeros_like(number), number))


def _threefry(key: _Words, counter: _Words) -> _Words:
    """Return the two encrypted words of every counter. All additions are modulo 2**32."""
    schedule = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(_PARITY))
    first: NDArray[np.uint32] = counter[0] + schedule[0]
    second: NDArray[np.uint32] = counter[1] + schedule[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            first = first + second
            second = ((second << np.uint32(rotation)) | (second >> np.uint32(32 - rotation))) ^ first
        first = first + schedule[(group + 1) % 3]
        second = second + schedule[(group + 2) % 3] + np.uint32(group + 1)
    return first, second
