"""How many batches a server computes at once, and that each keeps to its thread."""

import os
import subprocess
import sys

import pytest

# In a process of its own: JAX makes its devices once.
SCRIPT = """
import os, sys, threading
from serving.cores import on_one_core, start_devices
at_once = start_devices()
import jax, jax.numpy as jnp
@jax.jit
def function(x):
    for _ in range(4):
        x = jnp.tanh(x @ x)
    return x
x = jax.device_put(jnp.ones((1000, 1000)))
compiled = []
cores = os.sched_getaffinity(0)
on_one_core(lambda: compiled.append(function.lower(x).compile()))
assert os.sched_getaffinity(0) == cores
compiled[0](x).block_until_ready()

def seconds():  # of processor time, by thread
    ticks = os.sysconf("SC_CLK_TCK")
    return {task: sum(map(int, open(f"/proc/self/task/{task}/stat").read().rsplit(")", 1)[1].split()[11:13])) / ticks
            for task in os.listdir("/proc/self/task")}

before = seconds()
for _ in range(20):
    compiled[0](x).block_until_ready()
after = seconds()
used = {task: after[task] - before.get(task, 0) for task in after}
own = used.pop(str(threading.get_native_id()))
print(at_once, own, sum(used.values()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs the times of threads from /proc")
def test_a_batch_is_computed_by_the_thread_that_asks_for_it() -> None:
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=120)
    at_once, own_s, others_s = map(float, ran.stdout.split())
    assert at_once == len(os.sched_getaffinity(0))
    assert own_s > 0.2  # eighty products of 2e9 operations each
    assert others_s < 0.1 * own_s
