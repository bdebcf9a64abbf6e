"""What a run says of its cost: figures by hand."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from tests.training.fake_clock import FakeClock
from training.budgets import run_cost
from training.budgets.time_budget import TimeBudget
from training.config import TrainConfig


def test_an_environment_without_a_preset_says_what_the_papers_takes_and_what_to_try() -> None:
    lines = run_cost.before_start(TrainConfig(env="ant_u_maze"))
    assert lines[0].startswith("device: CPU, ")
    assert "ant_u_maze has no preset of its own. Preset paper takes 100,000,000 environment steps" in lines[-1]
    assert lines[-1].endswith("--preset ant_on_two_cores")
    assert run_cost.before_start(TrainConfig(env="reacher"))[-1].endswith("--preset point_u_maze")
    own = run_cost.before_start(TrainConfig(env="point_u_maze", preset="paper"))
    assert not any("preset" in line for line in own)


def test_a_gpu_that_is_not_used_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert run_cost.unused_gpu("cpu", root=tmp_path) == ""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").write_text("")
    assert "has an NVIDIA GPU, but JAX computes on the CPU; install requirements/cuda13.txt" in run_cost.unused_gpu(
        "cpu", root=tmp_path
    )
    assert run_cost.unused_gpu("gpu", root=tmp_path) == ""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert run_cost.unused_gpu("cpu", root=tmp_path) == ""
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    assert run_cost.unused_gpu("cpu", root=tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("changes", "policies"),
    [
        ({}, "4 MB for 2 policies"),
        ({"num_evals": 6}, "12 MB for 6 policies"),
        ({"num_evals": 6, "keep_policies": 0}, "12 MB for 6 policies"),
        ({"num_evals": 6, "keep_policies": 1}, "6 MB for 3 policies"),  # the best, the newest, and the one before it
    ],
)
def test_the_disk_holds_three_snapshots_and_the_policies_that_are_kept(
    tiny, tmp_path, monkeypatch, changes: dict[str, int], policies: str
) -> None:
    free, usage = 10**11, type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(run_cost.shutil, "disk_usage", lambda _: usage(10**12, 0, free))
    params, snapshot = jnp.zeros(500_000), {"replay": jnp.zeros(1_000_000), "key": jax.random.key(0)}
    assert run_cost.bytes_of(snapshot) == 4_000_008
    told = run_cost.disk(tiny(tmp_path / "run", **changes), params, snapshot=snapshot)
    assert told == f"disk: up to 12 MB for snapshots and {policies}; 100.0 GB are free"
    free = 13_000_000
    told = run_cost.disk(tiny(tmp_path / "run", **changes), params, snapshot=snapshot)
    assert "; 13 MB are free. WARNING: that is less. Free some space, lower --keep-policies" in told


def report_after(tiny, *, collect: float, update: float | None, steps: int, **changes) -> list[str]:
    """The lines after two unrolls of 40 environment steps, and after a round of five gradient steps.

    The first of each takes ten times as long, as the first run of a program may.
    """
    config = tiny(Path("run"), total_env_steps=steps, updates_per_unroll=5, **changes)
    budget = TimeBudget(config, clock=FakeClock(), began=0.0)
    report = run_cost.CostReport(config)
    lines = list[str]()
    for seconds in (10 * collect, collect):
        assert lines == []
        budget.record("collect", seconds)
        lines += report.after_training(budget, done=1, pending_updates=0)
    if update is not None:
        for taken, seconds in enumerate((10 * update, update, update, update), start=1):
            assert not any("about" in line for line in lines)
            budget.record("update", seconds)
            lines += report.after_training(budget, done=1, pending_updates=5 - taken)
        budget.record("update", update)
    return lines + report.after_training(budget, done=1, pending_updates=0)  # nothing is said twice


def test_the_cost_is_told_as_soon_as_it_is_known(tiny) -> None:
    """An iteration takes 1 + 5 x 3 s. After its fourth slice, the six others and one gradient step remain."""
    assert report_after(tiny, collect=1, update=3, steps=40 * 7) == [
        "about 2 environment steps/s; the remaining 240 steps take about 1 min 39 s"
    ]
    assert report_after(tiny, collect=1, update=None, steps=40 * 100) == []
    (bound,) = report_after(tiny, collect=1, update=None, steps=40 * 7201)
    assert bound == "288,040 environment steps take 2 h 0 min or more here, before any gradient step"


def test_a_run_resumed_within_a_round_gives_no_forecast_before_its_second_unroll(tiny) -> None:
    """An iteration takes 1 + 5 x 3 s, and nine of them remain."""
    config = tiny(Path("run"), total_env_steps=40 * 11, updates_per_unroll=5)
    budget, report = TimeBudget(config, clock=FakeClock(), began=0.0), run_cost.CostReport(config)
    for pending in (4, 3, 2, 1, 0):
        budget.record("update", 3.0)
        assert report.after_training(budget, done=1, pending_updates=pending) == []
    assert budget.steps_per_s is None
    budget.record("collect", 10.0)
    assert report.after_training(budget, done=2, pending_updates=0) == []
    budget.record("collect", 1.0)
    (line,) = report.after_training(budget, done=2, pending_updates=0)
    assert line == "about 2 environment steps/s; the remaining 360 steps take about 2 min 24 s"


def test_a_forecast_is_never_more_than_what_the_time_limit_leaves(tiny) -> None:
    assert report_after(tiny, collect=1, update=3, steps=40 * 7, max_minutes=1) == [
        "about 2 environment steps/s; the remaining 240 steps would take about 1 min 39 s, but --max-minutes ends the "
        "run in 1 min 0 s"
    ]
    assert report_after(tiny, collect=1, update=None, steps=40 * 7201, max_minutes=60) == []


def test_days_are_a_warning_unless_there_is_a_time_limit(tiny) -> None:
    *_, told = report_after(tiny, collect=1, update=3, steps=40 * 5401 * 2)
    assert "take about 2.0 days. WARNING: that is days. Lower --total-env-steps, set --max-minutes" in told
    assert told.endswith("--preset point_u_maze")
    *_, told = report_after(tiny, collect=1, update=3, steps=40 * 5401 * 2, max_minutes=60)
    assert "WARNING" not in told
