"""The SLURM script and the Kubernetes Job: what can be tried without a cluster.

The script runs with an `srun` and an `scontrol` of this test. Like SLURM's own, `srun` passes SIGUSR1 and SIGUSR2 on to
what it starts, kills it after SIGTERM and SIGHUP (`_srun_signal_mgr` in src/srun/libsrun/srun_job.c), and returns its
exit code. The manifest is read as YAML, and our parser reads its arguments.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from training.run import parse
from training.stop_signals import STOPPED_EXIT_CODE, take_exit_code

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "deploy/slurm/train.sbatch"
MANIFEST = ROOT / "deploy/kubernetes/train-job.yaml"
PROGRAMS = {
    "srun": """
trap 'kill -s USR1 $!' USR1
trap 'kill -s USR2 $!' USR2
trap 'kill -s KILL $!' TERM HUP
"$@" & task=$!
wait $task; code=$?
while kill -0 $task 2>/dev/null; do wait $task; code=$?; done
exit $code
""",
    "scontrol": 'echo "$@" >> "$RECORD.scontrol"\n',
    # ends by itself with $CODE, or with 75 some time after a signal
    "kilolayer-train": """
echo "$@" > "$RECORD.arguments"
trap 'sleep 0.3; exit 75' USR1 USR2 TERM
if [ -n "$CODE" ]; then exit "$CODE"; fi
touch "$RECORD.ready"
while :; do sleep 0.05; done
""",
}


class Job:
    """The script as SLURM starts it, with programs that note what they are called with."""

    def __init__(self, folder: Path, *, code: str = "") -> None:
        self.record = folder / "record"
        programs = folder / "bin"
        programs.mkdir()
        for name, text in PROGRAMS.items():
            (programs / name).write_text(f"#!{shutil.which('bash')}\n{text}")
            (programs / name).chmod(0o755)
        settings = {"PATH": f"{programs}:{os.environ['PATH']}", "RECORD": str(self.record), "CODE": code}
        self.process = subprocess.Popen(
            ["bash", str(SCRIPT), "--env", "ant", "--out", "runs/my ant"],
            env=os.environ | settings | {"SLURM_JOB_ID": "4711"},
            start_new_session=True,
        )

    def signal(self, number: signal.Signals, *, to_all: bool = False) -> None:
        """Send a signal to the script, or to all processes of the job, once it trains and has set its traps."""
        deadline = time.monotonic() + 240
        while not (self.record.with_suffix(".ready").exists() and self._has_traps()):
            assert time.monotonic() < deadline
            assert self.process.poll() is None
            time.sleep(0.01)
        if to_all:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)

    def _has_traps(self) -> bool:
        """Whether the script handles SIGTERM, which it does last."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (caught,) = re.findall(r"^SigCgt:\s*(\w+)$", status, re.MULTILINE)
        return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)

    def noted(self, name: str) -> str:
        """What a program was called with; empty if it was not."""
        path = self.record.with_suffix(f".{name}")
        return path.read_text().strip() if path.exists() else ""


def test_at_its_time_limit_the_job_stops_the_run_and_is_queued_again(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.signal(signal.SIGUSR1)
    assert job.process.wait(240) == STOPPED_EXIT_CODE
    assert job.noted("scontrol") == "requeue 4711"
    assert job.noted("arguments") == "--resume auto --stopped-exit-code 75 --env ant --out runs/my ant"


@pytest.mark.parametrize("to_all", [False, True])
def test_a_job_that_is_cancelled_stops_the_run_and_is_not_queued_again(tmp_path: Path, to_all: bool) -> None:
    job = Job(tmp_path)
    job.signal(signal.SIGTERM, to_all=to_all)
    assert job.process.wait(240) == STOPPED_EXIT_CODE
    assert job.noted("scontrol") == ""


@pytest.mark.parametrize("code", ["0", "1", "75"])
def test_a_run_that_ends_by_itself_ends_the_job(tmp_path: Path, code: str) -> None:
    job = Job(tmp_path, code=code)
    assert job.process.wait(240) == int(code)
    assert job.noted("scontrol") == ""


def test_the_script_warns_the_shell_and_can_be_queued_again() -> None:
    options = re.findall(r"^#SBATCH (\S+)", SCRIPT.read_text(), flags=re.MULTILINE)
    assert {"--signal=B:USR1@300", "--requeue", "--open-mode=append"} <= set(options)
    first_command = next(line for line in SCRIPT.read_text().splitlines() if line and not line.startswith("#"))
    assert SCRIPT.read_text().index("#SBATCH --output") < SCRIPT.read_text().index(first_command)  # or it is ignored


@pytest.fixture
def job() -> dict[str, Any]:
    """The Job's specification."""
    manifest = yaml.safe_load(MANIFEST.read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("batch/v1", "Job")
    return manifest["spec"]


def test_the_arguments_of_the_job_begin_the_run_and_continue_it(job: dict[str, Any]) -> None:
    (container,) = job["template"]["spec"]["containers"]
    assert container["command"] == ["kilolayer-train"]
    code, arguments = take_exit_code(container["args"])
    config = parse(arguments)
    assert config.resume == "auto"
    (volume,) = container["volumeMounts"]
    assert config.out.is_relative_to(volume["mountPath"])
    assert [each["name"] for each in job["template"]["spec"]["volumes"]] == [volume["name"]]
    stopped, *_ = job["podFailurePolicy"]["rules"]
    assert stopped["action"] == "Ignore"
    assert stopped["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [code]}


def test_the_job_starts_one_pod_after_the_other_and_does_not_repeat_wrong_arguments(job: dict[str, Any]) -> None:
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # Kubernetes refuses a podFailurePolicy with any other
    assert job["podReplacementPolicy"] == "Failed"
    rules = [(rule["action"], *rule) for rule in job["podFailurePolicy"]["rules"]]
    assert rules == [
        ("Ignore", "action", "onExitCodes"),
        ("FailJob", "action", "onExitCodes"),
        ("Ignore", "action", "onPodConditions"),
    ]
    assert job["podFailurePolicy"]["rules"][1]["onExitCodes"]["values"] == [2]
