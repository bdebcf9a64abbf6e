"""In a clone in which nothing is installed, each program says in one line what to install."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("program", "missing"),
    [("serving/admin.py", "serving"), ("serving/run.py", "serving"), ("clients/sim/run.py", "jax")],
)
def test_a_program_that_is_not_installed_says_what_to_install(program: str, missing: str) -> None:
    # Without site-packages, and without PYTHONPATH and the current folder.
    command = [sys.executable, "-S", "-I", program, "status"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ")
    assert f"No module named '{missing}': run make install and use .venv/bin/python, or install with pip" in line
    assert (ended.returncode, ended.stdout) == (1, "")


def test_the_operators_command_without_its_libraries_says_what_to_install(tmp_path: Path) -> None:
    """As if the clone were on the path of a Python without gRPC and protobuf."""
    program = f"import sys; sys.path[:0] = [{str(ROOT)!r}]; from serving.admin import main; sys.exit(main(['status']))"
    ended = subprocess.run(
        [sys.executable, "-S", "-I", "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert ended.stderr == (
        "error: No module named 'google': install with pip install -e clients/python -e '.[serve]'\n"
    )
    assert ended.returncode == 1
