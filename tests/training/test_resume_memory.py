"""A resumed run needs hardly more memory than one that begins: measured on real processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training import probes
from tests.training.flags import TINY_RUN
from training.budgets import memory_budget

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests/training/killed_run.py"
ENVS, UNROLL = 1_000, 5
SLOTS = 20_000  # 20 million steps of two state values, an action and an episode number: 320 MB


# The kernel counts what a process was before it began its program too, here the size of the tests' own process; so a
# small process starts the one that is measured.
MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
"""


def peak_bytes(out: Path, *flags: str) -> int:
    """Train in a process of its own; return the peak of its resident memory."""
    command = [sys.executable, str(PROGRAM), "", "", *TINY_RUN, f"--num-envs={ENVS}", f"--out={out}", *flags]
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, *command],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(measured.stdout)


@pytest.mark.slow  # five processes
def test_a_resumed_run_takes_little_more_memory_than_one_that_begins(tiny, tmp_path: Path) -> None:
    steps, large = ENVS * UNROLL * 4, f"--max-replay-size={SLOTS}"
    for size in ((), (large,)):  # compiling takes more memory than all else here; from now on nothing is compiled
        peak_bytes(tmp_path / f"compiled{len(size)}", *size, f"--total-env-steps={steps}")
    small = peak_bytes(tmp_path / "small", f"--total-env-steps={steps}")
    began = peak_bytes(tmp_path / "run", large, f"--total-env-steps={steps}")
    resumed = peak_bytes(tmp_path / "run", large, f"--total-env-steps={2 * steps}", "--resume")
    parts = memory_budget.estimate(tiny(tmp_path, num_envs=ENVS, max_replay_size=SLOTS), probes.Line())
    assert parts.replay == ENVS * SLOTS * 16
    assert began - small > 0.9 * parts.replay, "the replay buffer is in the measured memory"
    assert resumed <= 1.3 * began
    assert resumed - began < parts.replay / 2, "it is not there twice"
