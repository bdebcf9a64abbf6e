"""Which names the check finds in code, documents and paths, and which words of a sentence it leaves alone."""

import subprocess
import sys
from pathlib import Path

import pytest

from scripts import check_names

SCRIPT = Path(check_names.__file__)


def names(text: str, *, python: bool = True) -> list[str]:
    return [use.name for use in check_names.uses(text, python=python)]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("class WaitingLine: pass", "WaitingLine"),
        ("self._lanes.begin(kind)", "_lanes"),
        ("from serving import doorway", "doorway"),
        ("def settle(batch): return None", "settle"),
        ("kind = Kind.DRAW", "DRAW"),
        ("x: Learner = update", "Learner"),
        ('"""Hands a batch to `UnderWay.end`."""', "UnderWay"),
        ("# see `_crowded`", "_crowded"),
        ('flags = ["--unroll", "5"]', "--unroll"),
        ('sample("kilolayer_requests_shed_total")', "kilolayer_requests_shed_total"),
        ("# as in child.py", "child.py"),
        ('row["eval/success_any"]', "eval/success_any"),
        ("config.stop_at_success_rate", "stop_at_success_rate"),
        ('flags = ["--stop-at-success-rate", "0.9"]', "--stop-at-success-rate"),
        ('rule = Rule("latest", follow=True)', "Rule"),
        ("plan = Restart(None, {}, ())", "Restart"),
        ("await deployment.look_now()", "look_now"),
        ("policy.retry_in = RETRY_LOOKS", "RETRY_LOOKS"),
        ("return parse_place(word)", "parse_place"),
        ("from serving.engine.thread_priority import start_giving_way", "start_giving_way"),
        ('flags = ["--host", "0.0.0.0"]', "--host"),
        ("# as stopping.py does", "stopping.py"),
    ],
)
def test_a_retired_name_in_python_is_found(source: str, name: str) -> None:
    assert names(source) == [name]


@pytest.mark.parametrize(
    "source",
    [
        '"""Two lanes of traffic; the crowd settles, and a judge offers company at a pace."""',
        "line = parent.begin(call)  # a line that the child's parent began",
        'flags = ["--unroll-length", "5"]',
        "settled = positions_at_rest; judged = True; spaceship = shedding = None",
        "grandparent.python_files(children)",
        "rule: VersionRule | DecisionRule; plan = RestartPlan(None); restart = path.looks_at(slot)",
        'flags = ["--hostname", "--max-rows-per-call", "Restart=on-failure", "setpoint.py", "policy/calls.pyi"]',
    ],
)
def test_an_english_word_is_not(source: str) -> None:
    assert names(source) == []


def test_documents_are_searched_between_backticks_and_for_flags_and_metrics() -> None:
    text = "The lanes are plain words.\nThe field `lanes` is not, nor is --goal-redraw-probability 0.1.\n"
    assert check_names.uses(text, python=False) == [
        (2, "--goal-redraw-probability", "--resample-goal-probability"),
        (2, "lanes", "max_concurrency, InFlightBatches"),
    ]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("serving/parent.py", ["parent.py"]),
        ("tests/serving/lanes.md", ["lanes"]),
        ("serving/batching/queue.py", []),
        ("docs/apparent.md", []),
    ],
)
def test_the_name_of_a_file_counts(path: str, found: list[str]) -> None:
    assert [use.name for use in check_names.uses_in_path(path)] == found


def test_the_command_lists_uses_and_fails(tmp_path: Path) -> None:
    def check() -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, str(SCRIPT)], cwd=tmp_path, capture_output=True, text=True, check=False)

    (tmp_path / "CHANGELOG.md").write_text("Removed: `WaitingLine`.\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "code.py").write_text("line = 1\n")
    assert (check().returncode, check().stdout) == (0, "")
    (tmp_path / "code.py").write_text("line = 1\nlane = Lanes(2)\n")
    found = check()
    assert found.returncode == 1
    assert found.stdout.splitlines() == [
        "code.py:2: Lanes is retired, say max_concurrency, InFlightBatches",
        "code.py:2: lane is retired, say max_concurrency, InFlightBatches",
    ]
    assert found.stderr == "error: 2 uses of retired names\n"
