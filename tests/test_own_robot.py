"""The page on robots of your own, done as it says: its files in a folder elsewhere, its commands as processes."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kilolayer import PolicyClient
from policy import bundle
from tests.test_end_to_end import ROOT, TINY, served

PAGE = (ROOT / "docs" / "your-own-robot.md").read_text()
EXAMPLE = ROOT / "docs" / "examples" / "two_link"
COMMANDS = re.findall(r"^python \$KILOLAYER/(\S+) (.*)$", PAGE, flags=re.MULTILINE)
STATE = ("shoulder [rad]", "elbow [rad]", "shoulder rate [rad/s]", "elbow rate [rad/s]")
TIP = ("fingertip x [m]", "fingertip y [m]")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The user's, which holds the example and nothing of the project."""
    for name in ("my_robot.py", "two_link.xml"):
        shutil.copy(EXAMPLE / name, tmp_path)
    return tmp_path


def run(folder: Path, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the project's `script` in `folder`."""
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        cwd=folder,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def test_the_page_shows_the_example_and_says_what_to_run() -> None:
    (shown,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert shown == (EXAMPLE / "my_robot.py").read_text()
    assert len(shown.splitlines()) < 30
    assert [script for script, _ in COMMANDS] == ["training/run.py", "serving/run.py", "clients/sim/run.py"]


@pytest.mark.slow
def test_the_example_is_trained_served_and_driven_from_its_own_folder(folder: Path) -> None:
    (train, train_flags), (_, serve_flags), (drive, drive_flags) = COMMANDS
    sizes = [word for flag, number in TINY.items() if flag != "preset" for word in (f"--{flag}", str(number))]
    trained = run(folder, train, *shlex.split(train_flags), *sizes)
    assert trained.returncode == 0, trained.stderr
    policies = folder / serve_flags.split()[1]
    spec = bundle.read(policies / "160").spec
    assert (spec.name, spec.environment) == ("two_link", "two_link")
    assert spec.state_names == STATE + TIP
    assert spec.goal_names == TIP
    assert spec.action_names == ("shoulder [N m]", "elbow [N m]")
    assert spec.control_period_s == pytest.approx(0.04)
    assert json.loads((folder / "runs/two_link/config.json").read_text())["env"] == "my_robot:two_link"
    with served(policies) as address:
        with PolicyClient(address, timeout_s=60) as client:
            assert client.describe().state_names == spec.state_names
        flags = drive_flags.replace("127.0.0.1:50051", address)
        sizes = ["--robots", "2", "--episodes", "3", "--episode-length", "5"]
        driven = run(folder, drive, *shlex.split(flags), *sizes, "--timeout-s", "60")  # the machine may be busy
        assert driven.returncode == 0, driven.stderr
        module = folder / "my_robot.py"
        module.write_text(module.read_text().replace('"shoulder", "elbow"', '"elbow", "shoulder"'))
        changed = run(folder, drive, *shlex.split(flags))
        assert changed.returncode == 1
        told = "the policy's state names contain 'shoulder [rad]' where two_link now has 'elbow [rad]'"
        assert told in changed.stderr
    summary = json.loads((folder / "runs/drive/summary.json").read_text())
    assert (summary["environment"], summary["policy"], summary["requests"], summary["missed"]) == (
        *("two_link", "two_link"),
        *(15, 0),
    )
    assert (folder / "runs/drive/paths.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_module_is_found_on_pythonpath_and_what_is_wrong_with_its_robot_is_one_line(folder: Path) -> None:
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    file = folder / "two_link.xml"
    file.write_text(file.read_text().replace('site name="fingertip"', 'site name="finger tip"'))
    paths = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    done = run(elsewhere, "training/run.py", "--env", "my_robot:two_link", "--out", "run", PYTHONPATH=paths)
    assert done.returncode == 2
    assert done.stderr == f"error: {file}: there is no site 'fingertip'; known, nearest first: finger tip\n"
    assert not (elsewhere / "run").exists()
