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
PROGRAM = ROOT / "tests/training/measured_run.py"
ENVS, UNROLL = 1_000, 5
SLOTS = 40_000  # 40 million steps of two state values, an action and an episode number: 640 MB
STEPS = ENVS * UNROLL * 4


def measure(out: Path, *flags: str) -> tuple[int, int]:
    """Train in a process of its own; return the memory of its initial state, and the peak of its memory, in bytes."""
    sizes = (f"--num-envs={ENVS}", f"--max-replay-size={SLOTS}", "--num-evals=1")
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *TINY_RUN, *sizes, f"--out={out}", *flags],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    initial, peak = done.stdout.splitlines()[-1].split()
    return int(initial), int(peak)


@pytest.mark.slow  # three processes
def test_a_resumed_run_takes_little_more_memory_than_one_that_begins(tiny, tmp_path: Path) -> None:
    measure(tmp_path / "run", f"--total-env-steps={STEPS}")  # compiling takes more memory than all else here
    initial, began = measure(tmp_path / "compiled", f"--total-env-steps={STEPS}")
    _, resumed = measure(tmp_path / "run", f"--total-env-steps={2 * STEPS}", "--resume")
    parts = memory_budget.estimate(tiny(tmp_path, num_envs=ENVS, max_replay_size=SLOTS), probes.Line())
    assert parts.replay == ENVS * SLOTS * 16
    assert initial > 0.9 * parts.replay, "the replay buffer is in the measured memory"
    assert resumed <= 1.3 * began
    assert resumed - began < parts.replay / 2, "it is not there twice"
