"""Cores: on CPUs every batch is computed on one core, and as many batches at once as there are cores.

XLA would rather split each batch among all of them, which then wait for one another in every layer: whatever else runs
on one core holds up all, and a server that also receives, answers and refuses calls always has something else to run.
Batches side by side do not wait for one another. One that would gain by more cores is split by the batcher.
"""

import os
import sys
from collections.abc import Callable

import jax

from serving.niceness import start_giving_way

_POOL = "PJRT_NPROC"  # how many threads JAX's CPU device computes a batch with; read once, when the device is made


def start_devices() -> int:
    """Have JAX make its devices. Returns how many batches they are to compute at once.

    Before, JAX must not have been asked for a device. An accelerator computes one batch at a time, as fast as it can;
    so do CPUs where threads cannot be kept to a core, which is everywhere but on Linux.
    """
    # The thread that asks waits for the result anyway; handing a batch over to a thread of JAX's only costs time.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if sys.platform != "linux":
        return 1
    os.environ[_POOL] = "1"
    start_giving_way(jax.devices)
    return len(os.sched_getaffinity(0)) if jax.default_backend() == "cpu" else 1


def on_one_core(function: Callable[..., object], *arguments: object) -> None:
    """Call `function`, which compiles, as if there were only one core: XLA splits work by the cores that it sees then.

    Linux only.
    """
    cores = os.sched_getaffinity(0)  # of this thread
    os.sched_setaffinity(0, {max(cores)})
    try:
        function(*arguments)
    finally:
        os.sched_setaffinity(0, cores)
