"""A real run, killed and stopped again and again at chosen moments: what it leaves behind, and how it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from policy import bundle
from training.run import main
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


def start(out: Path, *, event: str = "", fragment: str = "", cache: bool = True) -> subprocess.Popen[bytes]:
    """Begin the run, or go on with it, in a process that `killed_run` kills at `event`.

    Args:
        cache: whether programs may come from the tests' compilation cache.
    """
    resume = ["--resume"] if (out / "config.json").exists() else []
    command = [sys.executable, str(ROOT / "tests/training/killed_run.py"), event, fragment, *FLAGS, f"--out={out}"]
    settings = {"PYTHONPATH": str(ROOT), "JAX_ENABLE_COMPILATION_CACHE": str(cache).lower()}
    with (out.parent / f"{out.name}.log").open("ab") as log:
        return subprocess.Popen([*command, *resume], stdout=log, stderr=log, env=os.environ | settings, cwd=ROOT)


def killed(out: Path, event: str, fragment: str) -> None:
    """Go on until the first such event, where the process kills itself; whatever is published then is whole."""
    assert start(out, event=event, fragment=fragment).wait(200) == -signal.SIGKILL, (event, fragment)
    for version in bundle.versions(out / "policies"):
        bundle.read(out / "policies" / str(version))


def killed_after_progress(out: Path) -> None:
    """Go on until something new is published, and kill the process at once, wherever it is."""
    process = start(out)
    wait_for_progress(out, process)
    process.kill()
    assert process.wait(60) == -signal.SIGKILL


def stopped(out: Path, number: signal.Signals) -> None:
    """Go on until something new is published, and ask for the end: the state is saved, and the exit code is 0."""
    process = start(out)
    wait_for_progress(out, process)
    process.send_signal(number)
    assert process.wait(60) == 0
    told = (out.parent / f"{out.name}.log").read_text()
    saved = max(int(path.name) for path in (out / "snapshots").iterdir())
    assert "stopping after the current unroll" in told
    assert f"stopped; saved {out}/snapshots/{saved}, continue with --resume" in told
    assert "Traceback" not in told


def wait_for_progress(out: Path, process: subprocess.Popen[bytes]) -> None:
    before = len(bundle.versions(out / "policies"))
    deadline = time.monotonic() + 200
    while len(bundle.versions(out / "policies")) <= before:
        assert process.poll() is None, (out.parent / f"{out.name}.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def last_params(out: Path) -> list[jax.Array]:
    """The arrays of the last published policy."""
    root = out / "policies"
    return jax.tree.leaves(bundle.read(root / str(bundle.versions(root)[-1])).params)


@pytest.mark.slow  # nine processes, of which each imports everything and traces its programs
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("without_physics")
def test_a_run_killed_and_stopped_all_over_ends_as_one_left_alone(tmp_path: Path) -> None:
    """The same policies, the last bit for bit, and the same evaluations on the way; so does a fresh compilation.

    The losses of an epoch that was interrupted by a signal are averaged over what was left of it, so they differ.
    """
    straight, out = tmp_path / "straight", tmp_path / "run"
    assert main([*FLAGS, f"--out={straight}"]) == 0
    compiled_anew = start(tmp_path / "anew", cache=False)
    killed(out, "os.rename", "/snapshots/")  # the snapshot is written, and not yet in its place
    assert bundle.versions(out / "policies") == []
    killed(out, "open", "policy.json")  # the snapshot is there, its policy is not
    stopped(out, signal.SIGTERM)
    killed(out, "os.rename", "/policies/")  # the policy is written, and not yet in its place
    killed_after_progress(out)
    stopped(out, signal.SIGINT)
    assert start(out).wait(200) == 0, (tmp_path / "run.log").read_text()

    steps = bundle.versions(straight / "policies")
    assert len(steps) == EPOCHS
    assert bundle.versions(out / "policies") == steps
    assert compiled_anew.wait(200) == 0, (tmp_path / "anew.log").read_text()
    for other in (out, tmp_path / "anew"):
        for ours, theirs in zip(last_params(straight), last_params(other), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    records = [
        [{name: value for name, value in row.items() if name.startswith(("env_steps", "eval/"))} for row in rows]
        for rows in map(read_metrics, (straight, out))
    ]
    assert [row["env_steps"] for row in records[0]] == steps
    assert records[0] == records[1]
