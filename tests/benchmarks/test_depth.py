"""What the depth study makes of its runs, by hand, and how it starts them."""

import importlib
import os
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def depth(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module; it finds its own helpers beside itself."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("depth")


def run(depth: Any, seed: int, at_goal: list[float]) -> Any:
    curve = [
        {
            "env_steps": 10 * (index + 1),
            "eval/time_at_goal": figure,
            "eval/stay": figure / 200,
            "eval/touched": figure / 100,
            "loss/critic": 2.0 + seed,
            "time/train_s": 1.5,
            "entropy": 0.0,
        }
        for index, figure in enumerate(at_goal)
    ]
    return depth.Run(8, seed, curve)


def test_a_row_is_the_mean_of_the_last_five_evaluations_over_the_seeds(depth: Any) -> None:
    runs = [run(depth, 0, [99, 10, 20, 30, 40, 50]), run(depth, 1, [0, 30, 40, 50, 60, 70])]
    row = depth.row(8, runs)
    assert row["time at goal"] == pytest.approx((30 + 50) / 2)
    assert row["+-"] == pytest.approx(10)  # half the difference of two figures
    assert row["each run"] == "30.0, 50.0"
    assert (row["stay"], row["touched"]) == pytest.approx((0.2, 0.4))
    assert row["critic loss"] == pytest.approx(2.5)
    assert row["train s"] == pytest.approx(9)
    assert depth.row(8, runs[:1])["+-"] is None


def test_the_record_keeps_named_columns_of_every_evaluation(depth: Any) -> None:
    record = run(depth, 1, [3, 4]).record()
    assert (record["depth"], record["seed"]) == (8, 1)
    assert record["env_steps"] == [10, 20]
    assert record["eval/time_at_goal"] == [3, 4]
    assert "entropy" not in record
    assert depth.Run.from_record(record).last("eval/time_at_goal") == 3.5


def test_runs_differ_in_depth_and_seed_and_share_out_the_processors(
    depth: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[tuple[str, ...]] = []
    shares: list[set[int]] = []
    monkeypatch.setattr(depth.subprocess, "run", lambda command, **_: started.append(tuple(map(str, command[2:]))))
    monkeypatch.setattr(depth.os, "sched_setaffinity", lambda _, processors: shares.append(processors))
    monkeypatch.setattr(depth, "read_metrics", lambda _: [])
    options = depth.Options(depths=(4, 8), seeds=2, runs=tmp_path, jobs=1, learning_rate=3e-4)
    runs = depth.train_all(options)
    assert [(each.depth, each.seed) for each in runs] == [(4, 0), (4, 1), (8, 0), (8, 1)]
    assert shares == [os.sched_getaffinity(0)] * 4
    for command, (layers, seed) in zip(started, [(8, 0), (4, 0), (8, 1), (4, 1)], strict=True):
        flags = dict(zip(command[::2], command[1::2], strict=True))
        assert flags["--actor-depth"] == flags["--critic-depth"] == str(layers)
        assert flags["--seed"] == str(seed)
        assert flags["--critic-learning-rate"] == "0.0003"
        assert "learning rate 0.0003" in flags["--out"]


def test_the_picture_is_drawn(depth: Any, tmp_path: Path) -> None:
    depth.draw([run(depth, 0, [1, 2]), run(depth, 1, [2, 3])], tmp_path / "new" / "depth.png", title="a maze")
    assert (tmp_path / "new" / "depth.png").read_bytes().startswith(b"\x89PNG")
