"""A training run without physics that measures its memory: `python measured_run.py <flags of training/run.py>`.

The last line of its output has two numbers of bytes: by how much the initial state, with the replay buffer, increased
the resident memory, and the peak of the resident memory.
"""

import re
import sys
from pathlib import Path
from typing import Any

import jax

from tests.training import probes
from training import trainer
from training.envs import registry
from training.run import main


def memory_bytes(field: str) -> int:
    """Return what the kernel says of this process: VmRSS, or VmHWM, the peak since it began this program."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def measure_initial_state() -> list[int]:
    """Let the trainer note by how much each initial state increases the resident memory; return the notes."""
    notes: list[int] = []
    make = trainer.initial_state

    def measured(*arguments: Any) -> Any:
        before = memory_bytes("VmRSS")
        state = jax.block_until_ready(make(*arguments))
        notes.append(memory_bytes("VmRSS") - before)
        return state

    trainer.initial_state = measured
    return notes


if __name__ == "__main__":
    line = probes.Line()
    registry.make = lambda *_, **__: line
    taken = measure_initial_state()
    code = main(sys.argv[1:])
    print(taken[0], memory_bytes("VmHWM"))
    sys.exit(code)
