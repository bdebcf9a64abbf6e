"""What the measurement of presets makes of its runs, by hand, and how it starts them."""

import importlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def presets(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module; it finds its own helpers beside itself."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("presets")


def curve(*touched: float) -> list[dict[str, float]]:
    """An evaluation every 10 s and 1,000 steps."""
    return [
        {"env_steps": 1000 * index, "time/total_s": 10 * index, "eval/touched": share, "eval/stay": share / 2}
        for index, share in enumerate(touched, start=1)
    ]


def test_a_row_is_the_median_over_the_seeds_with_the_extremes(presets: Any) -> None:
    runs = [
        presets.Run(0, 50.0, 61.5, curve(0.2, 0.95, 0.8)),
        presets.Run(1, 40.0, 50.0, curve(0.9, 0.7, 1.0)),
        presets.Run(2, 70.0, 99.0, curve(0.5, 0.5, 0.9)),
    ]
    assert presets.row(runs, touched=0.9) == {
        "s until touched": "20 (10 to 30)",
        "steps until touched": "2,000 (1,000 to 3,000)",
        "command s": "50 (40 to 70)",
        "CPU s": "62 (50 to 99)",
        "last touched": "0.9 (0.8 to 1)",
        "last stay": "0.45 (0.4 to 0.5)",
    }


def test_a_run_that_never_touched_enough_goals_is_the_slowest(presets: Any) -> None:
    runs = [presets.Run(seed, 1.0, 1.0, curve(0.1, share)) for seed, share in enumerate((0.9, 0.9, 0.8))]
    assert presets.row(runs, touched=0.9)["s until touched"] == "20 (20 to never)"


def test_every_run_is_the_training_command_and_is_not_repeated(
    presets: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[list[str]] = []

    def train(command: list[str], *, env: dict[str, str], **options: Any) -> None:
        assert options["check"]
        assert "JAX_COMPILATION_CACHE_DIR" not in env
        started.append(command)
        folder = Path(command[command.index("--out") + 1])
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in curve(0.95)))

    monkeypatch.setattr(subprocess, "run", train)
    options = presets.Options(runs=tmp_path, flags="--num-evals 3")
    first = presets.run(options, "point_u_maze", "a", seed=4, flags=("--actor-width", "8"))
    again = presets.run(options, "point_u_maze", "a", seed=4, flags=("--actor-width", "8"))
    assert first == again
    assert first.first("env_steps", touched=0.9) == 1000
    (command,) = started
    assert command[1].endswith("training/run.py")
    assert command[2:] == [
        *("--env", "point_u_maze", "--out", str(tmp_path / "a"), "--seed", "4", "--overwrite"),
        *("--actor-width", "8", "--num-evals", "3"),
    ]


def test_the_candidates_are_valid_commands(presets: Any) -> None:
    from training.run import parse

    for env, candidates in presets.CANDIDATES.items():
        for flags in candidates.values():
            assert parse(["--env", env, "--out", "x", *flags]).env == env
