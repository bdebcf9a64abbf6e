"""What random and zero actions reach, measured once in a run."""

from pathlib import Path

import pytest

from tests.training.fake_clock import FakeClock
from tests.training.lines import Lines
from training import trainer
from training.budgets.time_budget import TimeBudget
from training.run_dir import references

pytestmark = pytest.mark.usefixtures("without_physics")


def test_a_run_measures_both_once_and_says_them_beside_the_policys(tiny, tmp_path) -> None:
    """On a line, zero actions stay in the middle, which is no goal; a random walk rarely gets to an end in time."""
    told, config = Lines(), tiny(tmp_path / "run", eval_episodes=64)
    outcome = trainer.train(config, progress=told)
    found = references.read(config.out)
    assert found is not None
    assert found["zero_actions"]["eval/touched"] == 0
    assert found["zero_actions"]["eval/final_distance"] == 1  # the ends are at -1 and 1
    assert found["zero_actions"]["eval/episode_length"] == 20
    assert found["random_actions"]["eval/final_distance"] != 1
    (line,) = [line for line in told.lines if line.startswith("stay: trained ")]
    figures = outcome.metrics["eval/stay"], found["random_actions"]["eval/stay"]
    assert line.startswith("stay: trained {:.2f}, random actions {:.2f}, zero actions 0.00; touched: ".format(*figures))
    before = (config.out / "references.json").stat().st_mtime_ns
    trainer.train(tiny(config.out, eval_episodes=64, resume=True, total_env_steps=280))
    assert (config.out / "references.json").stat().st_mtime_ns == before


def test_a_damaged_file_counts_as_none(tmp_path: Path) -> None:
    assert references.read(tmp_path) is None
    for text in ("[", "[]", '{"random_actions": {}}', '{"random_actions": {"a": null}, "zero_actions": {}}'):
        (tmp_path / "references.json").write_text(text)
        assert references.read(tmp_path) is None


def test_one_episode_is_not_enough(tiny, tmp_path) -> None:
    assert references.measure_once(tiny(tmp_path, eval_episodes=1), pytest.fail, None, clock=lambda: 0.0) == 0
    assert not any(tmp_path.iterdir())


def test_the_line_says_how_many_began_at_their_goal(tmp_path: Path) -> None:
    figures = {"eval/stay": 0.5, "eval/touched": 0.75}
    both = {"random_actions": {"eval/stay": 0.25, "eval/touched": 0.125}, "zero_actions": dict.fromkeys(figures, 0.0)}
    line = "stay: trained 0.50, random actions 0.25, zero actions 0.00; touched: trained 0.75, random actions 0.12, "
    assert references.describe(figures | {"eval/reached_at_reset": 0.0625}, both) == (
        f"{line}zero actions 0.00; 6% of the episodes began at their goal"
    )
    assert references.describe(figures | {"eval/reached_at_reset": 0.0}, both) == f"{line}zero actions 0.00"
    assert references.describe(figures, None) == references.describe({}, both) == ""


@pytest.mark.parametrize(
    ("settings", "total_s", "allowed"),
    [
        ({"max_eval_share": 0.2}, 20.0, True),  # 2 s so far and 2 more are a fifth of 22 s or less
        ({"max_eval_share": 0.2}, 17.0, False),
        ({"max_eval_share": 1.0}, 3.0, True),
        ({"max_eval_share": 1.0, "max_minutes": 0.5}, 24.0, True),  # 6 s are left, of which the last evaluation takes 4
        ({"max_eval_share": 1.0, "max_minutes": 0.5}, 25.0, False),
    ],
)
def test_they_are_measured_when_the_time_for_evaluations_allows(
    tiny, tmp_path, settings: dict[str, float], total_s: float, allowed: bool
) -> None:
    clock = FakeClock()
    budget = TimeBudget(tiny(tmp_path, **settings), clock=clock, began=0.0)
    budget.record("evaluate", 2.0)  # and its publication takes 2 s until one was timed
    clock.now = total_s
    assert budget.may_measure_references == allowed
    budget.record("references", 2.0)
    assert budget.eval_share == pytest.approx(4.0 / total_s)
