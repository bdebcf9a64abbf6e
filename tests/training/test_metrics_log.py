"""The curves of a run."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from training.run_dir.metrics_log import draw_curves

ROWS = [
    {"env_steps": 20_000, "eval/success_any": 0.25, "eval/time_at_goal": 10.0},
    {"env_steps": 40_000, "eval/success_any": 0.5, "eval/time_at_goal": 30.0, "loss/critic": 2.0, "loss/actor": 1.0},
]


def test_curves_have_a_title_and_the_unit_of_their_axis(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *args, **kwargs: drawn.append(figure) or save(figure, *args, **kwargs)
    )
    path = draw_curves(ROWS, tmp_path / "curves.png", title="point_u_maze, depth 4, seed 0")
    assert path.read_bytes().startswith(b"\x89PNG")
    (figure,) = drawn
    assert figure.get_suptitle() == "point_u_maze, depth 4, seed 0"
    success, at_goal, loss = figure.axes
    assert success.get_xlabel() == "environment steps [thousand]"
    (line,) = success.get_lines()
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([20, 40], [0.25, 0.5])
    assert at_goal.get_ylim()[0] == 0
    assert [line.get_label() for line in loss.get_lines()] == ["critic", "actor"]


def test_a_run_without_rows_has_empty_curves(tmp_path: Path) -> None:
    assert draw_curves([], tmp_path / "curves.png", title="").read_bytes().startswith(b"\x89PNG")
