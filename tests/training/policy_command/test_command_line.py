"""kilolayer-policy as a command line: usage errors, exit codes, and a fast help."""

import subprocess
import sys
from pathlib import Path

import pytest

from training.policy_command.run import main


def test_a_wrong_command_line_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show"]) == 2
    assert capsys.readouterr().err == (
        "error: the following arguments are required: DIR; kilolayer-policy show --help describes the usage\n"
    )
    assert main(["shoe", "somewhere"]) == 2
    assert capsys.readouterr().err.startswith("error: argument COMMAND: invalid choice: 'shoe' (choose from ")


def test_a_folder_without_versions_is_a_wrong_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path} has no published version; name a published version such as runs/first/policies/2000, or "
        "the folder of all versions\n"
    )


@pytest.mark.parametrize("words", [["--help"], ["show", "--help"]])
def test_the_help_needs_no_jax(words: list[str]) -> None:
    program = (
        "import sys\n"
        "from training.policy_command.run import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print('jax' in sys.modules)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    assert ended.stdout.startswith("usage: kilolayer-policy ")
    assert ended.stdout.endswith("\nFalse\n")
