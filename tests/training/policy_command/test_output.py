"""What the command prints arrives whole, however late it is read."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from training.policy_command import output

SIZE = 2**21
PROGRAM = f"from training.policy_command import output; output.write('x' * {SIZE})"


@pytest.mark.parametrize("is_blocking", [True, False])
def test_a_pipe_that_is_read_late_gets_everything(is_blocking: bool) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, is_blocking)
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=writer) as process:
        os.close(writer)
        received = len(os.read(reader, 1))  # the program has begun to write, and the pipe cannot take everything
        time.sleep(1.5)
        while part := os.read(reader, 2**20):
            received += len(part)
        os.close(reader)
    assert (received, process.returncode) == (SIZE, 0)


def test_a_reader_that_ends_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        output.write("text\n")


def test_what_the_encoding_lacks_is_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "out").open("w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        output.write("5 µm\n")
    assert (tmp_path / "out").read_bytes() == b"5 \\xb5m\n"


def test_a_closed_standard_output_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(output.OutputError, match=r"^standard output is closed$"):
        output.write("text\n")
