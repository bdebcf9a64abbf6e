"""The curves of one run and of several."""

import json
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.figure import Figure

from scripts import curves as script
from training.run_dir import curves

ROWS = [
    {"env_steps": 20_000, "eval/stay": 0.25, "eval/stay_low": 0.125, "eval/stay_high": 0.5, "eval/touched": 0.5},
    {
        "env_steps": 40_000,
        "eval/stay": 0.5,
        "eval/stay_low": 0.375,
        "eval/stay_high": 0.75,
        "eval/touched": 1.0,
        "loss/critic": 2.0,
        "loss/actor": 1.0,
        "entropy": -1.0,
        "contrast/accuracy": 0.25,
    },
]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved."""
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *args, **kwargs: figures.append(figure) or save(figure, *args, **kwargs)
    )
    return figures


def thick(panel: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """The lines of a panel that the legend names: x and y."""
    lines = zip(*panel.get_legend_handles_labels(), strict=True)
    return {label: (list(line.get_xdata()), list(line.get_ydata())) for line, label in lines}


def band(panel: Axes, number: int) -> list[tuple[float, float, float]]:
    """One of the bands of a panel: x, lowest and highest y."""
    found = [each for each in panel.collections if isinstance(each, FillBetweenPolyCollection)]
    (path,) = found[number].get_paths()
    x, y = np.asarray(path.vertices).T
    return [(step, y[x == step].min(), y[x == step].max()) for step in sorted(set(x.tolist()))]


def test_a_run_has_a_panel_for_each_question_and_a_band_where_its_metrics_have_one(
    drawn: list[Figure], tmp_path: Path
) -> None:
    backend = mpl.rcParams._get_backend_or_none()  # as other code of this process has chosen it
    path = curves.draw([ROWS], tmp_path / "curves.png", title="point_u_maze, depth 4, seed 0", target_entropy=-1.5)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert mpl.rcParams._get_backend_or_none() == backend
    (figure,) = drawn
    assert figure.get_suptitle() == "point_u_maze, depth 4, seed 0"
    success, loss, entropy, accuracy = figure.axes
    assert accuracy.get_xlabel() == "environment steps [thousand]"
    assert thick(success) == {
        "touched at least once: 1.00": ([20, 40], [0.5, 1.0]),
        "stay since the first arrival: 0.50": ([20, 40], [0.25, 0.5]),
    }
    assert band(success, 0) == [(20, 0.125, 0.5), (40, 0.375, 0.75)]
    assert list(thick(loss)) == ["critic", "actor"]
    assert thick(entropy) == {"entropy": ([40], [-1.0]), "target": ([0, 1], [-1.5, -1.5])}
    assert thick(accuracy) == {"accuracy": ([40], [0.25])}


def test_the_stay_stands_beside_that_of_random_and_zero_actions(drawn: list[Figure], tmp_path: Path) -> None:
    references = {kind: {"eval/stay": stay} for kind, stay in (("random_actions", 0.125), ("zero_actions", 0.0625))}
    curves.draw([ROWS], tmp_path / "curves.png", title="", references=references)
    lines = thick(drawn[0].axes[0])
    assert lines["stay with random actions: 0.12"][1] == [0.125, 0.125]
    assert lines["stay with zero actions: 0.06"][1] == [0.0625, 0.0625]
    assert not any("actions" in label for panel in drawn[0].axes[1:] for label in thick(panel))


def test_drawing_leaves_the_callers_matplotlib_alone(tmp_path: Path) -> None:
    """A script that shows its own windows goes on to do so."""
    mpl.use("svg")
    try:
        curves.draw([ROWS], tmp_path / "curves.png", title="")
        assert mpl.get_backend() == "svg"
    finally:
        mpl.use("agg")


def test_a_panel_without_metrics_is_left_out(drawn: list[Figure], tmp_path: Path) -> None:
    baseline = [{"env_steps": 10, "eval/stay": 0.5, "eval/touched": 0.5, "loss/critic": 1.0}]
    curves.draw([baseline], tmp_path / "curves.png", title="")
    assert len(drawn[0].axes) == 2


def test_a_run_without_rows_has_empty_curves(tmp_path: Path) -> None:
    assert curves.draw([[]], tmp_path / "curves.png", title="").read_bytes().startswith(b"\x89PNG")


def write_run(folder: Path, *, stays: list[float], first: int = 10, **changes: object) -> Path:
    folder.mkdir()
    config: dict[str, object] = {
        "env": "point_u_maze",
        "algorithm": "crl",
        "actor_depth": 4,
        "critic_depth": 4,
        "seed": 0,
    }
    config["target_entropy_per_action"] = -0.5
    (folder / "config.json").write_text(json.dumps(config | {"out": str(folder)} | changes))
    rows = [{"env_steps": first + 10 * number, "eval/stay": stay} for number, stay in enumerate(stays)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_several_runs_are_drawn_as_mean_and_band_over_their_common_steps(
    drawn: list[Figure], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        write_run(tmp_path / "a", stays=[0.0, 0.5, 0.75], seed=0),
        write_run(tmp_path / "b", stays=[0.5, 0.75], seed=1, name="second", max_minutes=3),  # ended early
    ]
    policy = tmp_path / "a" / "policies" / "30"
    policy.mkdir(parents=True)
    (policy / "policy.json").write_text(json.dumps({"spec": {"action_names": ["x", "y", "z"]}}))
    assert script.main([*map(str, runs), "--out", str(tmp_path / "curves.png")]) == 0
    assert capsys.readouterr().out == f"curves in {tmp_path / 'curves.png'}\n"
    (figure,) = drawn
    assert figure.get_suptitle() == "point_u_maze, depth 4, mean of 2 seeds, band from the lowest to the highest"
    (panel,) = figure.axes
    assert thick(panel) == {"stay since the first arrival: 0.62": ([10, 20], [0.25, 0.625])}
    assert band(panel, 0) == [(10, 0.0, 0.5), (20, 0.5, 0.75)]
    thin = [line.get_ydata() for line in panel.get_lines() if line.get_linewidth() < 1]
    assert [list(line) for line in thin] == [[0.0, 0.5, 0.75], [0.5, 0.75]]
    assert script._target_entropy({"target_entropy_per_action": -0.5}, runs) == -1.5


def test_runs_evaluated_at_different_steps_are_interpolated(drawn: list[Figure], tmp_path: Path) -> None:
    """The second run is evaluated at 15 and 25, where the first one lies half way between its neighbors."""
    first = [{"env_steps": step, "eval/stay": stay} for step, stay in ((10, 0.0), (20, 0.5), (30, 1.0))]
    second = [{"env_steps": step, "eval/stay": stay} for step, stay in ((15, 0.5), (25, 1.0))]
    curves.draw([first, second], tmp_path / "curves.png", title="two")
    (panel,) = drawn[0].axes
    assert thick(panel) == {"stay since the first arrival: 0.88": ([15, 20, 25], [0.375, 0.625, 0.875])}
    assert band(panel, 0) == [(15, 0.25, 0.5), (20, 0.5, 0.75), (25, 0.75, 1.0)]


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        ({"stays": [0.5], "actor_depth": 8}, "b has actor_depth 8 and .*a has 4; draw runs together that differ"),
        ({"stays": [0.5], "actor_learning_rate": 1e-5}, "b has actor_learning_rate 1e-05 and .*a has"),
        ({"stays": []}, "b has no evaluation yet; leave it out"),
        ({"stays": [0.5], "first": 20}, "no steps in common; draw them one by one, or train with --max-eval-share 1"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], other: dict[str, Any], complaint: str
) -> None:
    runs = [write_run(tmp_path / "a", stays=[0.5]), write_run(tmp_path / "b", **other)]
    assert script.main([*map(str, runs), "--out", str(tmp_path / "curves.png")]) == 1
    assert re.search(complaint, capsys.readouterr().err)
    assert not (tmp_path / "curves.png").exists()


def test_a_folder_without_a_run_and_a_name_without_an_ending_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main([str(tmp_path), "--out", str(tmp_path / "curves.png")]) == 1
    assert "config.json" in capsys.readouterr().err
    run = write_run(tmp_path / "a", stays=[0.5])
    assert script.main([str(run), "--out", str(tmp_path / "curves")]) == 1
    assert "--out must be a file name that ends in .png" in capsys.readouterr().err
