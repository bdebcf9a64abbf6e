"""The harness that kills training runs: what it compares, and that it kills when it should."""

import json
import shutil
import signal
from pathlib import Path

import pytest

from tests.faults import training_kills
from tests.faults.conftest import publish
from tests.faults.training_kills import Kill, KilledRun, differences


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with two evaluated policies."""
    out = tmp_path_factory.mktemp("runs") / "run"
    for version in (80, 160):
        publish(out / "policies", version)
    rows = [{"env_steps": version, "eval/stay": 0.5, "loss/critic": 1.0, "time/total_s": 3.0} for version in (80, 160)]
    (out / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return out


def test_two_runs_that_differ_in_losses_and_times_only_are_the_same(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    metrics = other / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"loss/critic": 1.0, "time/total_s": 3.0', '"time/total_s": 4.0'))
    assert differences(run, other) == []


def test_the_comparison_notices_another_evaluation_other_parameters_and_a_missing_policy(
    run: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    metrics = other / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"eval/stay": 0.5', '"eval/stay": 0.25', 1))
    assert differences(run, other) == ["the evaluations differ"]
    shutil.rmtree(other / "policies" / "160")
    assert differences(run, other) == ["published [80, 160] and [80]"]
    shutil.copytree(other / "policies" / "80", other / "policies" / "160")
    assert differences(run, other) == ["the parameters of policy 160 differ", "the evaluations differ"]


@pytest.mark.parametrize(
    ("kill", "code"),
    [
        (Kill(after_s=0.0), -signal.SIGKILL),
        (Kill(line="ready", number=signal.SIGTERM), -signal.SIGTERM),
        (Kill(), 7),
    ],
)
def test_a_process_is_killed_at_a_time_or_at_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill: Kill, code: int
) -> None:
    script = tmp_path / "tests/training/killed_run.py"
    script.parent.mkdir(parents=True)
    pause = "import time; time.sleep(600)" if kill.line or kill.after_s is not None else ""
    script.write_text(f"print('ready', flush=True)\n{pause}\nraise SystemExit(7)")
    monkeypatch.setattr(training_kills, "ROOT", tmp_path)
    run = KilledRun(tmp_path / "run")
    assert run.kill(kill) == code
    assert run.codes == [code]
