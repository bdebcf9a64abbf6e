"""A run goes on whatever becomes of its output: no reader, one that does not read, a full disk, a closed terminal."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import rich.console

from policy import bundle
from tests.training.fake_clock import FakeClock, set_times
from tests.training.flags import TINY_RUN
from training import standard_output
from training.run import main
from training.run_dir.metrics_log import read_metrics

ROOT = Path(__file__).parents[2]


def closed_pipe() -> io.TextIOWrapper:
    """A pipe whose reader has ended."""
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w")


def full_pipe() -> tuple[int, io.TextIOWrapper]:
    """A pipe whose reader does not read, and which takes no more."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"." * 4096)
    os.set_blocking(writing, True)
    return reading, os.fdopen(writing, "w")


def test_a_stream_that_takes_nothing_keeps_nobody_waiting_and_says_what_is_missing(monkeypatch) -> None:
    monkeypatch.setattr(standard_output, "_PATIENCE_S", 0.01)
    monkeypatch.setattr(standard_output, "_MOST_HELD", 20)
    reading, stream = full_pipe()
    with stream:
        output = standard_output.TolerantStream(stream)
        for line in ("first", "second", "much more than fits", "four"):
            print(line, file=output, flush=True)
        got = b""
        while not got.endswith(b"in time]\n"):  # the reader reads after all
            got += os.read(reading, 65536)
        note = "[19 characters of output are missing here: they could not be written in time]"
        assert got.strip(b".").decode() == f"first\nsecond\n\nfour\n\n{note}\n"
        monkeypatch.setattr(standard_output, "_PATIENCE_S", 60)
        print("on", file=output)  # is written again, and the print waits until it is
        os.set_blocking(reading, False)
        assert os.read(reading, 65536) == b"on\n"
    os.close(reading)


def test_a_stream_that_another_process_made_non_blocking_is_written_whole(monkeypatch) -> None:
    monkeypatch.setattr(standard_output, "_PATIENCE_S", 0)
    reading, stream = full_pipe()
    os.set_blocking(stream.fileno(), False)
    with stream:
        output = standard_output.TolerantStream(stream)
        print("one", file=output)
        got = b""
        while not got.endswith(b"one\n"):
            got += os.read(reading, 65536)
        assert output.isatty() is False
    os.close(reading)


def test_within_a_tolerant_stream_nothing_is_replaced(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with standard_output.tolerant():
        outer = sys.stdout
        with standard_output.tolerant():
            assert sys.stdout is outer
        assert sys.stdout is outer


def test_a_program_that_trains_nothing_does_not_say_that_a_run_goes_on(monkeypatch, capsys) -> None:
    """`--list-envs | head -1`."""
    stream = closed_pipe()
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["--dry-run", "--env", "point_u_maze"]) == 0
    stream.close()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("broken", "reason"), [(closed_pipe, "Broken pipe"), (None, "No space left on device")])
def test_a_stream_gives_up_at_its_first_failed_write_and_says_so_once(broken, reason: str, monkeypatch) -> None:
    stream = broken() if broken else Path("/dev/full").open("w")  # noqa: SIM115 - closed below, without an error
    told = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", told)
    with standard_output.tolerant():
        console = rich.console.Console()
        for line in ("one", "two"):
            console.print(line)
        print("three", flush=True)
    assert sys.stdout is stream
    stream.close()  # as at the end of the interpreter; what was buffered is gone
    assert told.getvalue().count("\n") == 1
    assert told.getvalue().startswith("warning: standard output cannot be written ([Errno ")
    assert f"{reason}); the run goes on without it" in told.getvalue()


def test_without_any_stream_nothing_is_printed_and_no_file_takes_their_place(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with closed_pipe() as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        with standard_output.tolerant():
            print("one", flush=True)
            print("two", file=sys.stderr, flush=True)
    code = "import os, training.standard_output as s\nwith s.tolerant(): print(os.open('/dev/null', 0) > 2, flush=True)"
    # standard input and error are closed, as by `<&- 2>&-`
    closed = f'exec {sys.executable} -c "{code}" <&- 2>&-'
    ran = subprocess.run(["sh", "-c", closed], stdout=subprocess.PIPE, cwd=ROOT, text=True, check=True, timeout=240)
    assert ran.stdout == "True\n"


def test_characters_that_the_encoding_lacks_become_question_marks(monkeypatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    with standard_output.tolerant():
        print("5 μs", flush=True)
    assert raw.getvalue() == b"5 ?s\n"


@pytest.mark.usefixtures("without_physics")
def test_a_run_without_a_reader_leaves_what_it_would_leave_with_one(
    finished: Path, tmp_path: Path, monkeypatch
) -> None:
    told = io.StringIO()
    monkeypatch.setattr(sys, "stderr", told)
    monkeypatch.setattr(sys, "stdout", closed_pipe())
    assert main([*TINY_RUN, f"--out={tmp_path / 'run'}"]) == 0
    sys.stdout.close()
    assert told.getvalue() == (
        "warning: standard output cannot be written ([Errno 32] Broken pipe); the run goes on without it\n"
    )
    ours, theirs = ([row["loss/critic"] for row in read_metrics(run)] for run in (tmp_path / "run", finished))
    assert ours == theirs
    assert bundle.versions(tmp_path / "run" / "policies") == [120, 240]
    assert (tmp_path / "run" / "curves.png").exists()


@pytest.mark.usefixtures("without_physics")
def test_a_run_goes_on_when_its_terminal_is_closed_and_its_errors_are_not_read(
    finished: Path, tmp_path: Path, monkeypatch
) -> None:
    """The terminal shows a progress bar when it disappears. Its encoding is ASCII, and the bar's characters are not."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(standard_output, "_PATIENCE_S", 0.1)
    hidden = b"\x1b[?25l"  # what a progress bar does with the cursor
    controlling, terminal = os.openpty()
    reading, errors = full_pipe()
    output = os.fdopen(terminal, "w", encoding="ascii")
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(sys, "stderr", errors)
    shown: list[bytes] = []

    def close() -> None:
        if not shown:
            shown.append(b"")
            while hidden not in shown[0]:  # what is written may arrive late
                shown[0] += os.read(controlling, 65536)
            os.close(controlling)

    set_times(monkeypatch, FakeClock(), after_learn=close)
    assert main([*TINY_RUN, f"--out={tmp_path / 'run'}"]) == 0
    for closed in (output, errors):
        with contextlib.suppress(OSError):
            closed.close()
    os.close(reading)
    assert hidden in shown[0]
    ours, theirs = ([row["loss/critic"] for row in read_metrics(run)] for run in (tmp_path / "run", finished))
    assert ours == theirs
    assert bundle.versions(tmp_path / "run" / "policies") == [120, 240]


@pytest.mark.slow  # two processes, of which each imports everything and compiles three programs
@pytest.mark.parametrize(
    ("flags", "code"), [([], 0), (["--max-diverged-share=2"], 2), (["--critic-learning-rate=1e30"], 1)]
)
def test_the_exit_code_says_how_training_ended_and_not_what_became_of_the_output(
    tmp_path: Path, flags: list[str], code: int
) -> None:
    """Both outputs go into one pipe, and its reader ends after the first line, as `2>&1 | head -1` does."""
    command = [sys.executable, str(ROOT / "tests/training/killed_run.py"), "", "", "", *TINY_RUN, *flags]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen([*command, f"--out={tmp_path / 'run'}"], **streams, env=environ, cwd=ROOT) as run:
        assert run.stdout is not None
        run.stdout.readline()
        run.stdout.close()
        assert run.wait(900) == code
    assert (bundle.versions(tmp_path / "run" / "policies") == [120, 240]) == (code == 0)


@pytest.mark.slow  # a process that imports everything and compiles three programs
def test_a_process_whose_output_nobody_reads_trains_to_its_end(tmp_path: Path) -> None:
    """Also what libraries write to standard error without Python does not hold it up."""
    command = [sys.executable, str(ROOT / "tests/training/killed_run.py"), "", "", "", *TINY_RUN]
    reading, errors = full_pipe()
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    with (
        errors,
        subprocess.Popen(
            [*command, f"--out={tmp_path / 'run'}"], stdout=errors, stderr=errors, env=environ, cwd=ROOT
        ) as run,
    ):
        assert run.wait(900) == 0
    os.close(reading)
    assert bundle.versions(tmp_path / "run" / "policies") == [120, 240]
