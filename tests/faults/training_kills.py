"""A training run that is killed and started again with the same command, as a cluster does, and what it leaves.

run = KilledRun(tmp_path / "run")
run.kill(Kill(after_s=3.0))                              # SIGKILL, 3 s after the process began
run.kill(Kill(line="stay", number=signal.SIGTERM))       # when its log gets a line with this text
run.kill(Kill(event="open", fragment="policy.json"))     # at one of Python's audit events
codes = run.until_done()
assert differences(straight, run.out) == []

The run has no physics (see `tests/training/killed_run.py`) and small sizes. Its environment variables keep the
compilation cache of the tests, so a process takes a few seconds.
"""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from policy import bundle
from training.run_dir.metrics_log import read_metrics

ROOT = Path(__file__).parents[2]
EPOCHS = 10
FLAGS = (
    "--env=point_u_maze --preset=paper --num-envs=8 --unroll-length=5 "
    "--episode-length=20 --updates-per-unroll=3 --batch-size=16 "
    "--max-replay-size=23 --min-replay-size=10 --actor-width=16 --critic-width=16 --representation-dim=8 "
    f"--eval-episodes=4 --resample-goal-probability=0.1 --num-evals={EPOCHS} --max-eval-share=1 "
    f"--total-env-steps={8 * 5 * 2 * EPOCHS}"
).split()
_WAIT_S = 900.0  # for one process, on a busy machine
_POLL_S = 0.02
_MOST_STARTS = 20


@dataclasses.dataclass(frozen=True)
class Kill:
    """When a process gets which signal. One of `after_s`, `line` and `event` says when; none of them: never.

    Args:
        number: the signal.
        after_s: seconds after the process began.
        line: a text that the log of this process must contain.
        event: the name of one of Python's audit events, which has not happened yet when the process is killed; or
            "compiling".
        fragment: a part of the path that the event names.
    """

    number: signal.Signals = signal.SIGKILL
    after_s: float | None = None
    line: str = ""
    event: str = ""
    fragment: str = ""


class KilledRun:
    """One command that trains into `out`, started as often as needed. `log` has the output of all its processes.

    Args:
        flags: of the command, without --out and --resume.
        cache: whether programs may come from the tests' compilation cache.
    """

    def __init__(self, out: Path, *, flags: Sequence[str] = FLAGS, cache: bool = True) -> None:
        self.out, self.log = out, out.parent / f"{out.name}.log"
        self._command = [*flags, f"--out={out}", "--resume", "auto"]
        self._cache = cache
        self.codes: list[int] = []
        """How the processes ended so far: exit codes, or minus the signal."""

    def start(self, kill: Kill = Kill()) -> subprocess.Popen[bytes]:
        """Start the command; at an event of `kill` the process kills itself."""
        script = [
            sys.executable,
            str(ROOT / "tests/training/killed_run.py"),
            kill.event,
            kill.fragment,
            str(int(kill.number)),
        ]
        settings = {"PYTHONPATH": f"{ROOT}:{ROOT / 'clients/python'}"}
        settings["JAX_ENABLE_COMPILATION_CACHE"] = str(self._cache).lower()
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*script, *self._command], stdout=log, stderr=log, env=os.environ | settings, cwd=ROOT
            )

    def kill(self, kill: Kill) -> int:
        """Start the command and kill it; return how the process ended, which may be before the kill."""
        before = len(self.logged())
        process = self.start(kill)
        ends_s = time.monotonic() + _WAIT_S
        due_s = time.monotonic() + kill.after_s if kill.after_s is not None else ends_s
        while process.poll() is None and not kill.event:
            if time.monotonic() >= due_s or (kill.line and kill.line in self.logged()[before:]):
                process.send_signal(kill.number)
                break
            time.sleep(_POLL_S)
        return self.ended(process)

    def until_done(self) -> list[int]:
        """Start the command until it exits with 0; return how all processes ended, with those before."""
        while self.ended(self.start()) != 0:
            assert len(self.codes) < _MOST_STARTS, self.logged()
        return self.codes

    def ended(self, process: subprocess.Popen[bytes]) -> int:
        """Wait until the process ends, check that whatever it has published is whole, and return how it ended."""
        try:
            self.codes.append(process.wait(_WAIT_S))
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"the process did not end within {_WAIT_S:g} s:\n{self.logged()}") from None
        for version in bundle.versions(self.out / "policies"):
            bundle.read(self.out / "policies" / str(version))
        return self.codes[-1]

    def logged(self) -> str:
        """Return what all processes have printed so far."""
        return self.log.read_text() if self.log.exists() else ""


def differences(one: Path, other: Path) -> list[str]:
    """Return in what the results of two runs differ: published policies bit for bit, and evaluations.

    The losses of an epoch that a signal interrupted are averaged over what was left of it, and times are times, so
    neither is compared.
    """
    versions, others = (bundle.versions(run / "policies") for run in (one, other))
    if versions != others or not versions:
        return [f"published {versions} and {others}"]
    found: list[str] = []
    for version in map(str, versions):
        ours, theirs = (bundle.read(run / "policies" / version) for run in (one, other))
        if ours.spec != theirs.spec:
            found.append(f"the specifications of policy {version} differ")
        pairs = zip(jax.tree.leaves(ours.params), jax.tree.leaves(theirs.params), strict=True)
        if not all(np.array_equal(left, right) for left, right in pairs):
            found.append(f"the parameters of policy {version} differ")
    rows = [
        [{name: value for name, value in row.items() if name.startswith(("env_steps", "eval/"))} for row in each]
        for each in map(read_metrics, (one, other))
    ]
    if rows[0] != rows[1]:
        found.append("the evaluations differ")
    return found
