"""The supervisor, with programs of one line."""

import signal
import sys
import time
from pathlib import Path

import pytest

from tests.faults.supervised import Supervised, serve_command
from tests.serving.server_process import RUN

WAITS = "import signal, sys; signal.signal(15, lambda *_: sys.exit(3)); print('up', flush=True); signal.pause()"


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return False
    return state != "Z"


def test_a_killed_process_is_started_again_and_its_log_is_kept(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Supervised([sys.executable, "-c", WAITS], log=log, backoff_s=0.01) as program:
        program.wait_for("up")
        first = program.pid
        program.send(signal.SIGKILL)
        assert program.wait_for_exit(1).code == -signal.SIGKILL
        program.wait_for_start(2)
        program.wait_for("up\nup")
        assert program.pid != first
        assert program.stop().code == 3  # its own exit code, after SIGTERM
    assert len(program.starts_s) == 2
    assert log.read_text() == "up\nup\n"


def test_a_process_can_be_killed_with_its_children(tmp_path: Path) -> None:
    child = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {WAITS!r}]).pid, flush=True)"
    waits = "import signal; signal.pause()"
    with Supervised([sys.executable, "-c", f"{child}; {waits}"], log=tmp_path / "log", backoff_s=0.01) as program:
        (pid,) = program.wait_for(r"(\d+)\nup")
        program.kill_all()
        assert program.wait_for_exit(1).code == -signal.SIGKILL
        ends_s = time.monotonic() + 60
        while is_running(int(pid)):
            assert time.monotonic() < ends_s
            time.sleep(0.01)
        program.wait_for_start(2)
        program.kill_all()


def test_pauses_between_restarts_double(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit(1)"]
    with Supervised(command, log=tmp_path / "log", backoff_s=0.02, max_backoff_s=0.08) as program:
        program.wait_for_exit(4)
        starts_s, exits = list(program.starts_s), list(program.exits)
    gaps_s = [later - start - end.uptime_s for start, later, end in zip(starts_s, starts_s[1:], exits, strict=False)]
    for gap_s, pause_s in zip(gaps_s, (0.02, 0.04, 0.08), strict=False):
        assert gap_s >= pause_s - 0.001


def test_waiting_for_a_line_gives_up_if_the_process_ends_again_and_again(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such flag')"]
    with Supervised(command, log=tmp_path / "log", backoff_s=0.001) as program:
        with pytest.raises(AssertionError, match=r"ended \d+ times before 'ready':\nno such flag"):
            program.wait_for("ready")
        program.stop()


@pytest.mark.parametrize(("code", "starts"), [(0, 1), (1, 2)])
def test_systemd_restarts_only_after_a_failure(tmp_path: Path, code: int, starts: int) -> None:
    """A program that fails at first, if at all, and ends with 0 at its second start."""
    counter = tmp_path / "second"
    source = f"import pathlib; p = pathlib.Path({str(counter)!r}); c = p.exists(); p.touch(); exit(0 if c else {code})"
    command = [sys.executable, "-c", source]
    program = Supervised(command, log=tmp_path / "log", restart="on-failure", backoff_s=0.01)
    with program:
        assert program.wait_for_exit(starts).code == 0
    assert len(program.starts_s) == starts


def test_a_command_has_the_flags_that_were_given() -> None:
    command = serve_command(Path("a"), Path("b"), listen="127.0.0.1:7", metrics=False, workers=2)
    assert command[1:5] == [str(RUN), "--policies", "a", "b"]
    words = " ".join(command[5:])
    assert (
        words == "--listen 127.0.0.1:7 --metrics-port 0 --max-batch-rows 2 --log-format text --no-metrics --workers 2"
    )
