"""A dry run says what a command will do, and which published figure stands beside it; it writes and trains nothing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training import trainer
from training.budgets import memory_budget, run_cost
from training.envs import registry
from training.presets.published import PUBLISHED
from training.programs import initial_state
from training.run import main, parse
from training.run_dir import config_file

pytestmark = pytest.mark.usefixtures("without_physics")
Lines = Callable[..., dict[str, str]]


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lines:
    """Return a function that runs a command with --dry-run and returns its lines by their first words."""
    monkeypatch.setattr(trainer, "train", pytest.fail)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_cost, "device", lambda: "CPU, 2 cores")
    monkeypatch.setattr(memory_budget, "device_memory", lambda: 8 * 10**9)
    usage = type(shutil.disk_usage(tmp_path))(10**12, 0, 10**11)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)

    def run(*arguments: str) -> dict[str, str]:
        assert main([*arguments, "--dry-run"]) == 0
        assert list(tmp_path.iterdir()) == []
        told = capsys.readouterr()
        assert told.err == ""
        rows = [line.split("  ", 1) for line in told.out.splitlines()]
        return {name: text.strip() for name, text in rows}

    return run


def test_it_names_everything_that_a_published_figures_command_will_do(lines: Lines) -> None:
    told = lines("--env", "ant_u5_maze", "--preset", "paper", "--actor-depth", "16", "--critic-depth", "16")
    disk = told.pop("disk")
    assert disk.startswith("up to ")
    assert disk.endswith(" for 12 policies; 100.0 GB are free")
    assert told == {
        "environment": "ant_u5_maze: 2 state, 2 goal, 1 action values",  # of the test's environment
        "evaluated on": "ant_u5_maze_eval, 394 times, 128 episodes of 1,000 steps",
        "environment steps": "400,006,144: 12,601 iterations of 512 environments x 62 steps",
        "gradient steps": "10,067,200 of 512 rows",  # (12,601 - 17) * 800
        "networks": "actor depth 16, width 256; critic depth 16, width 256",
        "replay buffer": "1,000 to 10,000 steps of each environment, 0.08 GB",  # 512 * 10,000 * 16 bytes
        "published": "time at goal 20 of 1000 steps at depth 16 (Ant U5-Maze, arXiv 2503.14858, figure 1)",
        "device": "CPU, 2 cores",
        # replay 82 MB, parameters 50, activations 42, logits 5, indices of batches 7
        "memory": "0.22 GB of 8.00 GB",
        "time": "printed by the run, once it has measured its first iterations",
        "advice": "ant_u5_maze has no preset of its own. Preset paper takes 400,000,000 environment steps and is made "
        "for a GPU; the time it takes here is printed once it is measured. A small preset to try first: --preset "
        "ant_on_two_cores",
    }


def test_the_costs_are_those_that_the_run_tells(lines: Lines, tiny, tmp_path: Path) -> None:
    """Without compiling: sizes come from shapes."""
    flags = "--num-envs 8 --unroll-length 5 --max-replay-size 23 --min-replay-size 10 --num-evals 2 --max-minutes 90"
    told = lines("--env", "point_u_maze", *flags.split())
    config = parse(["--env", "point_u_maze", "--out", str(tmp_path), *flags.split()])
    state = initial_state(config, registry.make(config.env))
    assert told["disk"] == run_cost.disk(config, state.train_state.params, snapshot=state).removeprefix("disk: ")
    assert told["time"].startswith("at most 1 h 30 min (--max-minutes); a forecast is printed by the run")
    assert "advice" not in told
    assert "too large" not in told


def test_a_run_that_will_not_fit_is_told_what_to_lower(lines: Lines) -> None:
    told = lines("--env", "point_u_maze", "--preset", "paper", "--max-replay-size", "2000000")
    assert told["memory"].endswith(" GB of 8.00 GB")
    assert "lower max_replay_size from 2000000 to " in told["too large"]


def test_a_baseline_needs_no_disk(lines: Lines) -> None:
    told = lines("--env", "point_u_maze", "--algorithm", "sac")
    assert told["disk"] == "a baseline saves no snapshots and publishes no policy"


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


def started(folder: Path, *, snapshot: int, total_s: float, ended_at_minutes: float) -> list[str]:
    """Leave what a run of 20 minutes leaves in `folder`; return the flags that continue it."""
    flags = ["--env", "point_u_maze", "--out", str(folder), "--resume", "auto", "--max-minutes", "20"]
    config_file.write(folder, parse(flags))
    (folder / "snapshots" / str(snapshot)).mkdir(parents=True)
    (folder / "time.json").write_text(json.dumps({"total_s": total_s, "ended_at_minutes": ended_at_minutes}))
    return [*flags, "--dry-run"]


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    return {name: text.strip() for name, text in (line.split("  ", 1) for line in capsys.readouterr().out.splitlines())}


def test_a_run_that_is_continued_says_from_where_and_how_much_time_is_left(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(started(tmp_path, snapshot=145, total_s=300, ended_at_minutes=0)) == 0
    told = printed(capsys)
    assert told["run"] == f"continues from {tmp_path}/snapshots/145, of 2,000 iterations"
    assert told["time"].startswith("at most 15 min 0 s (--max-minutes, less 5 min 0 s that the run has taken); a")


def test_of_a_finished_run_it_says_only_that(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(started(tmp_path, snapshot=145, total_s=1200, ended_at_minutes=20)) == 0
    told = printed(capsys)
    assert list(told) == ["run"]
    assert told["run"].startswith(f"{tmp_path} is finished: it has trained for max_minutes 20; raise --max-minutes")


def test_a_folder_that_the_command_would_refuse_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ["--env", "point_u_maze", "--dry-run", "--out", str(tmp_path / "run")]
    assert main(command) == 0
    assert printed(capsys)["run"] == f"begins in {tmp_path}/run"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").touch()
    assert main(command) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/run is not empty; --resume continues the run in it")


def test_bad_flags_are_refused_as_without(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--env", "ant", "--dry-run", "--actor-depth", "6"]) == 2
    assert "actor_depth must be a positive multiple of 4, got 6" in capsys.readouterr().err


def test_the_figures_of_the_two_experiments_are_apart() -> None:
    """Ant Big Maze at depth 64: 441 on the evaluation layout, 637 on the training layout."""
    figures: dict[str, Any] = {preset: rows["ant_big_maze"].time_at_goal for preset, rows in PUBLISHED.items()}
    assert figures["paper"][64] == 441
    assert figures["training_layouts"][64] == 637
