"""Evaluations on goals from a file, goal by goal."""

import csv
from pathlib import Path

import numpy as np
import pytest

from tests.training import probes
from training import eval_goals, evaluation, trainer
from training.config import ConfigError

NAMES = "x, y"


@pytest.mark.parametrize(
    "text",
    ["1,0\n-1,0\n", "x,y\n1,0\n\n-1, 0\n", "1e0,0\r\n-1.0,0", "\ufeff1,0\n-1,0\n", "\ufeffx,y\n1,0\n-1,0\n"],
    ids=["numbers", "names and an empty line", "another line ending", "a byte order mark", "the mark before names"],
)
def test_a_csv_file_has_a_goal_a_row(tiny, tmp_path: Path, text: str) -> None:
    (tmp_path / "goals.csv").write_text(text, encoding="utf-8")
    goals = eval_goals.load(tiny(tmp_path, eval_goals=tmp_path / "goals.csv"), probes.Line())
    assert goals is not None
    assert goals.tolist() == [[1, 0], [-1, 0]]
    assert goals.dtype == np.float32


def test_an_array_has_a_goal_a_row(tiny, tmp_path: Path) -> None:
    np.save(tmp_path / "goals.npy", np.array([[1.0, 0.0]]))
    goals = eval_goals.load(tiny(tmp_path, eval_goals=tmp_path / "goals.npy"), probes.Line())
    assert goals is not None
    assert goals.tolist() == [[1, 0]]
    assert eval_goals.load(tiny(tmp_path), probes.Line()) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "goals.csv cannot be read: .*No such file"),
        ("", f"must have a row for each goal, with the 2 values {NAMES}; got the shape"),
        ("1\n2\n", r"with the 2 values x, y; got the shape \[2, 1\]"),
        ("1,0\n2\n", "cannot be read: line 2 has 1 values, and the first goal has 2"),
        ("1,0\n1,a\n", "cannot be read: line 2: could not convert string to float: 'a'"),
        ("3.O,1.0\n1,0\n", "cannot be read: line 1: could not convert string to float: '3.O'"),
        ("1,nan\n", "must have finite numbers, but has nan"),
        ("1,0\n" * 5, "has 5 goals, more than eval_episodes 4; use --eval-episodes 5, or a multiple"),
    ],
)
def test_goals_that_cannot_be_used_are_refused(tiny, tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "goals.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        evaluation.make_env(tiny(tmp_path, eval_goals=path), probes.Line())


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"PK"])
def test_a_damaged_array_is_refused(tiny, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "goals.npy").write_bytes(content)
    with pytest.raises(ConfigError, match="goals.npy cannot be read"):
        eval_goals.load(tiny(tmp_path, eval_goals=tmp_path / "goals.npy"), probes.Line())


@pytest.mark.usefixtures("without_physics")
def test_a_run_reports_goal_by_goal(tiny, tmp_path: Path) -> None:
    """Five episodes, two goals: the first has three. A robot begins in the middle, which is the second goal."""
    (tmp_path / "goals.csv").write_text("x,y\n1,0\n0,0\n")
    config = tiny(tmp_path / "run", eval_goals=tmp_path / "goals.csv", eval_episodes=5)
    outcome = trainer.train(config)
    assert sorted(path.name for path in (config.out / "eval_goals").iterdir()) == ["120.csv", "240.csv"]
    with (config.out / "eval_goals" / "240.csv").open() as file:
        far, near = csv.DictReader(file)
    assert [far["x"], far["y"], far["episodes"], far["reached_at_reset"]] == ["1", "0", "3", "0"]
    assert [near["x"], near["y"], near["episodes"], near["reached_at_reset"]] == ["0", "0", "2", "1"]
    assert (far["steps"], far["terminated"], far["diverged"]) == ("20", "0", "0")
    assert outcome.metrics["eval/reached_at_reset"] == pytest.approx(2 / 5)
    for figure in ("stay", "touched", "time_at_goal", "final_distance"):
        mean = (3 * float(far[figure]) + 2 * float(near[figure])) / 5
        assert mean == pytest.approx(outcome.metrics[f"eval/{figure}"], abs=1e-4)
