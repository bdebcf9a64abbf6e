"""The priority of the threads in which XLA compiles, in a process of its own: a niceness cannot be lowered again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Compile, lower the priority, compile for long. Print the niceness and the processor time of each native thread then.
PROGRAM = """
import json, os, threading
import jax, jax.numpy as jnp
from serving.engine import compiler_threads
from serving.engine.cpu_device import calling_thread_device

device = jax.sharding.SingleDeviceSharding(calling_thread_device())

def compile(operations):
    jax.jit(lambda x: [x := jnp.tanh(x @ x) + i for i in range(operations)][-1]).lower(
        jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=device)).compile()

def ticks():
    native = set(map(int, os.listdir("/proc/self/task"))) - {thread.native_id for thread in threading.enumerate()}
    stat = {task: open(f"/proc/self/task/{task}/stat").read() for task in native}
    return {task: sum(map(int, text.rpartition(")")[2].split()[11:13])) for task, text in stat.items()}

with compiler_threads.remembered():
    compile(1)
compiler_threads.set_lowest_priority()
before = ticks()
compile(60)
used = {task: after - before.get(task, 0) for task, after in ticks().items()}
print(json.dumps([[os.getpriority(os.PRIO_PROCESS, task), each] for task, each in used.items()]))
print(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere niceness is the process's")
def test_later_compilations_have_the_lowest_priority() -> None:
    environ = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environ, stdout=subprocess.PIPE, text=True, check=True)
    threads, own = map(json.loads, done.stdout.splitlines())
    all_ticks = sum(ticks for _, ticks in threads)
    lowest = sum(ticks for niceness, ticks in threads if niceness == 19)
    assert all_ticks > 0
    assert lowest >= 0.95 * all_ticks
    assert own == os.getpriority(os.PRIO_PROCESS, 0)
