"""Cores: a device that computes on the thread that calls, so that several batches can be computed at once.

Left to itself JAX's client for CPUs splits every operation of a network among all cores, and the parts of each wait for
one another before the next can begin: that costs twice the processor time for 64 rows, and more than it saves even for
thousands. Where a core is wanted for something else, such as receiving and answering calls, every operation waits for
it. Rows do not depend on one another, so a batch for every core loses nothing of this.
"""

import functools
import os
import sys
from typing import Any

import jax
import numpy as np
from jaxlib import xla_client

_THREADS = "PJRT_NPROC"  # environment variable that XLA reads when a client is made: threads in its pool
_ALIGNMENT = 64  # bytes; XLA reads an input that begins at a multiple of it where it lies


def available() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


@functools.cache
def calling_thread_device() -> Any:
    """The `jax.Device` that computes on whichever thread calls, and no other.

    The same at every call; None: JAX computes on an accelerator, which has no need of it.
    """
    if jax.default_backend() != "cpu":
        return None
    before = os.environ.get(_THREADS)
    os.environ[_THREADS] = "1"
    try:
        client = xla_client.make_cpu_client(asynchronous=False)
    finally:
        del os.environ[_THREADS]
        if before is not None:
            os.environ[_THREADS] = before
    return client.local_devices()[0]


def aligned_zeros(rows: int, columns: int) -> np.ndarray:
    """Zeros [rows, columns] float32 that XLA reads where they lie.

    Others it copies, and large ones in the one thread of the device's pool; then it computes there too, and so one
    batch at a time.
    """
    size = rows * columns * np.dtype(np.float32).itemsize
    memory = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -_address(memory) % _ALIGNMENT
    return memory[start : start + size].view(np.float32).reshape(rows, columns)


def is_aligned(array: np.ndarray) -> bool:
    """Whether XLA reads `array` where it lies."""
    return _address(array) % _ALIGNMENT == 0


def _address(array: np.ndarray) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
