"""A run goes on if its standard output can no longer be written: no reader, a full disk, a narrow encoding."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import rich.console

from policy import bundle
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
    ran = subprocess.run(["sh", "-c", closed], stdout=subprocess.PIPE, cwd=ROOT, text=True, check=True, timeout=60)
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


@pytest.mark.slow  # two processes, of which each imports everything and compiles three programs
@pytest.mark.parametrize(
    ("flags", "code"), [([], 0), (["--max-diverged-share=2"], 2), (["--critic-learning-rate=1e30"], 1)]
)
def test_the_exit_code_says_how_training_ended_and_not_what_became_of_the_output(
    tmp_path: Path, flags: list[str], code: int
) -> None:
    """Both outputs go into one pipe, and its reader ends after the first line, as `2>&1 | head -1` does."""
    command = [sys.executable, str(ROOT / "tests/training/killed_run.py"), "", "", *TINY_RUN, *flags]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen([*command, f"--out={tmp_path / 'run'}"], **streams, env=environ, cwd=ROOT) as run:
        assert run.stdout is not None
        run.stdout.readline()
        run.stdout.close()
        assert run.wait(300) == code
    assert (bundle.versions(tmp_path / "run" / "policies") == [120, 240]) == (code == 0)
