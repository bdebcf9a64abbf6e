"""The demonstration with quick stand-ins for its three commands: order, exit codes, what it leaves running."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from training.config import TrainConfig
from training.run_dir import config_file, lock

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "scripts" / "demo.py"
PORTS = {"--listen", "--metrics-port", "--address"}  # the demonstration uses free ones
RUN = "runs/first"  # the folder that the README shows; the demonstration has one of its own, which it replaces

# Each stand-in notes that it began, then does as the test says for its stage: "work" or "wait" or an exit code.
STAND_IN = """
import json, os, pathlib, signal, sys, time
stage = {stage!r}
arguments = sys.argv[1:]
flags = dict(zip(arguments[::2], arguments[1::2]))
root = pathlib.Path(__file__).resolve().parents[{up}]
if stage == "serve":
    def end(*_):
        (root / "serve.ended").write_text("")
        sys.exit(0)
    signal.signal(signal.SIGTERM, end)
(root / (stage + ".pid")).write_text(str(os.getpid()))
(root / (stage + ".json")).write_text(json.dumps(arguments))
behavior = os.environ.get("STAND_IN_" + stage.upper(), "work")
while stage == "drive" and not (root / "serve.json").exists():
    time.sleep(0.01)
if behavior.isdigit():
    sys.exit(int(behavior))
if stage == "train":
    (root / "runs" / "demo").mkdir(parents=True, exist_ok=True)
if behavior == "wait" or stage == "serve":
    time.sleep(600)
if stage == "drive":
    (root / "runs" / "demo" / "summary.json").write_text(json.dumps({{"stay": 0.91, "touched": 0.97}}))
"""
STAGES = {"train": "training/run.py", "serve": "serving/run.py", "drive": "clients/sim/run.py"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout in which every command is a stand-in."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(DEMO, tmp_path / "scripts")
    for stage, script in STAGES.items():
        path = tmp_path / script
        path.parent.mkdir(parents=True)
        path.write_text(STAND_IN.format(stage=stage, up=len(Path(script).parts) - 1))
    return tmp_path


def start(checkout: Path, *arguments: str, **behaviors: str) -> subprocess.Popen[str]:
    environ = os.environ | {f"STAND_IN_{stage.upper()}": behavior for stage, behavior in behaviors.items()}
    return subprocess.Popen(
        [sys.executable, "scripts/demo.py", *arguments],
        cwd=checkout,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path) -> str:
    for _ in range(2400):  # two minutes: the machine may be busy
        if path.exists() and path.read_text():
            return path.read_text()
        time.sleep(0.05)
    raise AssertionError(f"{path.name} never came")


def shown_flags(script: str) -> list[tuple[str, str]]:
    """The flags and values with which the README first shows `script`."""
    shown = re.search(rf"^python {script} (.*)$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert shown is not None
    words = shown[1].replace(RUN, "runs/demo").split()
    return list(zip(words[::2], words[1::2], strict=True))


def running(checkout: Path) -> list[str]:
    """The stages whose process is still there."""
    paths = {stage: checkout / f"{stage}.pid" for stage in STAGES}
    pids = {stage: path.read_text() for stage, path in paths.items() if path.exists()}
    # a stage that was killed between the creation of its file and the write left it empty
    return [stage for stage, pid in pids.items() if pid and Path(f"/proc/{pid}").exists()]


def test_the_three_commands_of_the_readme_run_in_order_and_the_server_is_stopped(checkout: Path) -> None:
    demo = start(checkout)
    said, complained = demo.communicate(timeout=240)
    assert demo.returncode == 0, complained
    assert "stay 0.910, 0.970 of the goals touched" in said
    train, serve, drive = (json.loads((checkout / f"{stage}.json").read_text()) for stage in STAGES)
    assert train == ["--env", "point_u_maze", "--out", "runs/demo", "--overwrite"]
    assert serve[:3] == ["--policies", "runs/demo/policies", "--listen"]
    assert drive[:4] == ["--env", "point_u_maze", "--address", serve[3]]
    assert drive[4:8] == ["--robots", "32", "--episodes", "128"]
    assert drive[-2:] == ["--min-stay-rate", "0.9"]
    for stage, arguments in (("train", train), ("serve", serve), ("drive", drive)):
        shown = [pair for pair in shown_flags(STAGES[stage]) if pair[0] not in PORTS]
        assert set(shown) <= set(itertools.pairwise(arguments)), f"the README shows other flags for {STAGES[stage]}"
    assert (checkout / "serve.ended").exists(), "the server was asked to stop, not killed"
    assert running(checkout) == []


def test_the_best_version_of_the_run_is_served(checkout: Path) -> None:
    demo = start(checkout)
    said, complained = demo.communicate(timeout=240)
    assert demo.returncode == 0, complained
    assert "2 of 3: serve the best version in runs/demo/policies on 127.0.0.1:" in said
    serve = json.loads((checkout / "serve.json").read_text())
    assert serve[:2] == ["--policies", "runs/demo/policies"]
    assert serve[4:6] == ["--versions", "point_u_maze=best"]
    assert serve[6:8] == ["--state-dir", "runs/demo/state"], "nothing is left in the user's folders"


def test_the_demonstration_replaces_everything_that_it_left_the_last_time(checkout: Path, tmp_path: Path) -> None:
    demo = start(checkout)
    _, complained = demo.communicate(timeout=240)
    assert demo.returncode == 0, complained
    words = [word for stage in ("serve", "drive") for word in json.loads((checkout / f"{stage}.json").read_text())]
    left = {Path(word).parts[2] for word in words if word.startswith("runs/demo/")}
    left |= {entry.name for entry in (checkout / "runs/demo").iterdir()}
    assert left == {"policies", "server.log", "state", "summary.json"}
    run = tmp_path / "run"
    run.mkdir()
    for name in left | {"paths.png"}:  # of the real program that drives
        (run / name).touch()
    config = TrainConfig(env="point_u_maze", out=run, overwrite=True)
    config_file.write(run, config, provenance={})
    lock.require_usable(config)


def test_no_command_of_a_page_uses_the_folder_that_the_demonstration_replaces() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        blocks = re.findall(r"^```sh\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        assert not any("runs/demo" in block for block in blocks), page
    assert f"--out {RUN}\n" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(("argument", "code"), [("--help", 0), ("--nope", 2), ("here", 2)])
def test_an_argument_starts_nothing(checkout: Path, argument: str, code: int) -> None:
    demo = start(checkout, argument)
    said, complained = demo.communicate(timeout=120)
    assert demo.returncode == code
    assert "replaces a run that is there" in said if code == 0 else f"unrecognized arguments: {argument}" in complained
    assert not (checkout / "train.json").exists()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_any_stage_ends_everything(checkout: Path, stage: str, number: signal.Signals) -> None:
    demo = start(checkout, **({stage: "wait"} if stage != "serve" else {"drive": "wait"}))
    wait_for(checkout / f"{stage}.json")
    demo.send_signal(number)
    _, complained = demo.communicate(timeout=120)
    assert demo.returncode == 130
    assert "interrupted" in complained
    assert "Traceback" not in complained
    assert running(checkout) == []


@pytest.mark.parametrize(("stage", "message"), [("train", "training failed"), ("drive", "driving failed")])
def test_a_stage_that_fails_fails_the_demonstration(checkout: Path, stage: str, message: str) -> None:
    demo = start(checkout, **{stage: "3"})
    _, complained = demo.communicate(timeout=240)
    assert demo.returncode == 1
    assert f"{message} with exit code 3" in complained
    assert running(checkout) == []


def test_a_server_that_dies_is_named_with_its_log(checkout: Path) -> None:
    demo = start(checkout, serve="4", drive="wait")
    _, complained = demo.communicate(timeout=240)
    assert demo.returncode == 1
    assert "server.log, failed with exit code 4" in complained
    assert running(checkout) == []
