"""Cores: a device that computes on the thread that calls, beside JAX's own, which splits its work among all cores.

On a CPU JAX's client has a pool of as many threads as there are cores. A small batch gains nothing by being split: its
parts wait for one another, which takes twice the processor time and longer in all. And where a core is wanted for
something else, such as receiving and answering calls, every part waits for it.
"""

import functools
import os
import sys
from typing import Any

import jax
from jaxlib import xla_client

_THREADS = "PJRT_NPROC"  # environment variable that XLA reads when a client is made: threads in its pool


def available() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


@functools.cache
def calling_thread() -> Any:
    """The `jax.Device`, the same at every call; None: JAX computes on an accelerator, which has no need of it."""
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
