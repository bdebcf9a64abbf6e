"""A real run, killed and stopped again and again at chosen moments: what it leaves behind, and how it ends."""

import re
import signal
from pathlib import Path

import pytest

from tests.faults.training_kills import EPOCHS, FLAGS, Kill, KilledRun, differences
from training.run import main
from training.run_dir.metrics_log import read_metrics

STOPPED = r"stopped; saved {out}/snapshots/\d+, continue with the same command\n"


@pytest.fixture(scope="module")
def straight(without_physics: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing has interrupted."""
    out = tmp_path_factory.mktemp("runs") / "straight"
    assert main([*FLAGS, f"--out={out}"]) == 0
    return out


@pytest.mark.slow  # eight processes, of which each imports everything and traces its programs
def test_a_command_that_is_killed_and_repeated_until_it_exits_0_ends_as_one_left_alone(
    straight: Path, tmp_path: Path
) -> None:
    """The same policies, the last bit for bit, and the same evaluations on the way; so does a fresh compilation."""
    anew = KilledRun(tmp_path / "anew", cache=False)
    compiled_anew = anew.start()
    run = KilledRun(tmp_path / "run")
    run.kill(Kill(event="import", fragment="training.trainer"))  # before anything is written
    run.kill(Kill(event="os.rename", fragment="/snapshots/"))  # the snapshot is written, not yet in its place
    run.kill(Kill(event="open", fragment="policy.json"))  # the snapshot is there, its policy is not
    run.kill(Kill(event="os.rename", fragment="/policies/", number=signal.SIGTERM))  # after an evaluation
    run.kill(Kill(event="os.rename", fragment="/policies/"))  # the policy is written, not yet in its place
    run.kill(Kill(event="os.rename", fragment="/policies/", number=signal.SIGINT))
    killed = -signal.SIGKILL
    assert run.until_done() == [killed, killed, killed, 75, killed, 130, 0], run.logged()
    assert len(read_metrics(straight)) == EPOCHS
    assert differences(straight, run.out) == []
    assert "Traceback" not in run.logged()
    assert len(re.findall(STOPPED.format(out=run.out), run.logged())) == 2
    assert anew.ended(compiled_anew) == 0, anew.logged()
    assert differences(straight, anew.out) == []
