"""A CPU device that computes on the calling thread, so that several threads can compute batches at the same time.

By default, JAX's CPU client splits every operation of a network among all cores, and each operation waits for all parts
of the one before. This takes twice the processor time for 64 rows, and is slower even for thousands of rows. If a core
is busy with something else, such as receiving requests, every operation waits for that core. Rows are independent of
each other, so one batch on each core uses all cores without these waits.
"""

import functools
import os
import sys
from typing import Any

import numpy as np
from jaxlib import xla_client

from serving.engine import compiler_threads

_THREADS = "PJRT_NPROC"  # environment variable: number of threads in the pool of a client that XLA makes
_ALIGNMENT = 64  # bytes; XLA copies an input whose address is not a multiple of this


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


@functools.cache
def calling_thread_device() -> Any:
    """Return the `jax.Device` that computes on the calling thread only. Every call returns the same device."""
    before = os.environ.get(_THREADS)
    os.environ[_THREADS] = "1"
    try:
        with compiler_threads.remembered():  # some of the threads that this starts compile, and none computes
            client = xla_client.make_cpu_client(asynchronous=False)
    finally:
        del os.environ[_THREADS]
        if before is not None:
            os.environ[_THREADS] = before
    return client.local_devices()[0]


def aligned_zeros(rows: int, columns: int) -> np.ndarray:
    """Return zeros [rows, columns] float32 that XLA uses without a copy.

    XLA copies other arrays. It copies large ones in the only thread of the device's pool and then computes there too,
    so only one batch would be computed at a time, and with the priority of a thread that compiles.
    """
    size = rows * columns * np.dtype(np.float32).itemsize
    memory = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -_address(memory) % _ALIGNMENT
    return memory[start : start + size].view(np.float32).reshape(rows, columns)


def is_aligned(array: np.ndarray) -> bool:
    """Return whether XLA uses `array` without a copy."""
    return _address(array) % _ALIGNMENT == 0


def _address(array: np.ndarray) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
