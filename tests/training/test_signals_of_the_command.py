"""Signals to a real process, at moments that a run inside a test cannot have: its imports, its compilation, nohup."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.training_kills import Kill, KilledRun
from tests.held_import import HeldImport
from training.run_dir.metrics_log import read_metrics

ROOT = Path(__file__).parents[2]


def while_importing(number: signal.Signals, folder: Path, *flags: str) -> tuple[int, str]:
    """Send a signal while the command imports its first large library; return the exit code and what it said."""
    held = HeldImport(folder, "numpy")
    command = [sys.executable, str(ROOT / "training/run.py"), "--env=ant", f"--out={folder / 'run'}", *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ | held.environ, text=True) as process:
        held.wait(process)
        process.send_signal(number)
        try:
            _, told = process.communicate(timeout=240)  # while the import still lasts
        finally:
            process.kill()
    return process.returncode, told


@pytest.mark.parametrize(
    ("number", "flags", "code"),
    [
        (signal.SIGTERM, [], 75),
        (signal.SIGUSR1, ["--stopped-exit-code", "0"], 0),
        (signal.SIGINT, [], 130),
    ],
)
def test_a_signal_during_the_imports_ends_the_process_with_its_code(
    number: signal.Signals, flags: list[str], code: int, tmp_path: Path
) -> None:
    assert while_importing(number, tmp_path, *flags) == (code, f"\n{number.name}: ended before training began\n")


@pytest.mark.slow  # a process that imports everything
def test_a_signal_during_compilation_ends_the_process_and_leaves_what_auto_begins_again(tmp_path: Path) -> None:
    run = KilledRun(tmp_path / "run")
    assert run.kill(Kill(event="compiling", number=signal.SIGUSR2)) == 75
    assert "\nSIGUSR2: ended; nothing was saved yet. Start again with the same command\n" in run.logged()
    assert "Traceback" not in run.logged()
    assert not (run.out / "snapshots").exists()


@pytest.mark.slow  # a process that trains to its end
def test_under_nohup_a_closed_terminal_does_not_stop_a_run(tmp_path: Path) -> None:
    run = KilledRun(tmp_path / "run")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does; a new process inherits it
    try:
        assert run.kill(Kill(number=signal.SIGHUP, line="  stay ")) == 0, run.logged()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert len(read_metrics(run.out)) == 10
