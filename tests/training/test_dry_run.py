"""A dry run says what a command will do, and which published figure stands beside it; it writes and trains nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training import trainer
from training.published import PUBLISHED
from training.run import main

pytestmark = pytest.mark.usefixtures("without_physics")
Lines = Callable[..., dict[str, str]]


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lines:
    """Return a function that runs a command with --dry-run and returns its lines by their first words."""
    monkeypatch.setattr(trainer, "train", pytest.fail)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> dict[str, str]:
        assert main([*arguments, "--dry-run"]) == 0
        assert list(tmp_path.iterdir()) == []
        told = capsys.readouterr()
        assert told.err == ""
        rows = [line.split("  ", 1) for line in told.out.splitlines()]
        return {name: text.strip() for name, text in rows}

    return run


def test_it_names_everything_that_a_published_figures_command_will_do(lines: Lines) -> None:
    assert lines("--env", "ant_u5_maze", "--preset", "paper", "--actor-depth", "16", "--critic-depth", "16") == {
        "environment": "ant_u5_maze: 2 state, 2 goal, 1 action values",  # of the test's environment
        "evaluated on": "ant_u5_maze_eval, 394 times, 128 episodes of 1,000 steps",
        "environment steps": "400,006,144: 12,601 iterations of 512 environments x 62 steps",
        "gradient steps": "10,067,200 of 512 rows",  # (12,601 - 17) * 800
        "networks": "actor depth 16, width 256; critic depth 16, width 256",
        "replay buffer": "1,000 to 10,000 steps of each environment, 0.08 GB",  # 512 * 10,000 * 16 bytes
        "published": "time at goal 20 of 1000 steps at depth 16 (Ant U5-Maze, arXiv 2503.14858, figure 1)",
    }


@pytest.mark.parametrize(
    ("flags", "published"),
    [
        ("ant_u5_maze --preset training_layouts", "time at goal 246 of 1000 steps at depth 4 (Ant U5, CRL in the"),
        ("humanoid --preset paper --seed 3 --out x --remat none", "time at goal 12.6 of 1000 steps at depth 4"),
        ("ant_u5_maze --preset paper --actor-depth 8", "no figure for this depth (Ant U5-Maze, arXiv 2503.14858"),
        (
            "ant_u5_maze --preset paper --eval-env ant_u5_maze --num-envs 8",
            "not comparable: this command differs from preset paper in eval_env ant_u5_maze (preset: ant_u5_maze_eval)"
            ", num_envs 8 (preset: 512)",
        ),
        ("humanoid --preset paper --algorithm sac", "not comparable: this command differs from preset paper in"),
        ("reacher --preset paper", "no figure for preset paper on reacher"),
        ("point_u_maze", "no figure for preset point_u_maze on point_u_maze"),
    ],
)
def test_a_command_stands_beside_the_figure_of_its_own_preset_and_depth(
    lines: Lines, flags: str, published: str
) -> None:
    assert lines("--env", *flags.split())["published"].startswith(published)


def test_bad_flags_are_refused_as_without(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--env", "ant", "--dry-run", "--actor-depth", "6"]) == 2
    assert "actor_depth must be a positive multiple of 4, got 6" in capsys.readouterr().err


def test_the_figures_of_the_two_experiments_are_apart() -> None:
    """Ant Big Maze at depth 64: 441 on the evaluation layout, 637 on the training layout."""
    figures: dict[str, Any] = {preset: rows["ant_big_maze"].time_at_goal for preset, rows in PUBLISHED.items()}
    assert figures["paper"][64] == 441
    assert figures["training_layouts"][64] == 637
