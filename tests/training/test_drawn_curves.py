"""When the curves of a run are drawn: often enough, seldom enough, and at every kind of end."""

import itertools
from pathlib import Path

import pytest

from tests.training.fake_clock import FakeClock
from training.config import TrainConfig
from training.run_dir import curves
from training.run_dir.metrics_log import MetricsLog


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of evaluations in each picture that was drawn."""
    numbers: list[int] = []

    def draw(runs: list[list[object]], path: Path, **_: object) -> Path:
        numbers.append(len(runs[0]))
        path.write_text(f"{numbers}")
        return path

    monkeypatch.setattr(curves, "draw", draw)
    return numbers


def test_curves_are_drawn_at_an_evaluation_once_30_s_have_passed_and_at_the_end(
    tmp_path: Path, drawn: list[int]
) -> None:
    clock = FakeClock()
    with MetricsLog(TrainConfig(env="point_u_maze", out=tmp_path), keep_until=0, clock=clock) as log:
        for number, now in enumerate((29.0, 30.0, 31.0, 59.0, 60.0, 61.0)):
            clock.now = now
            log.write({"env_steps": number})
        assert drawn == [2, 5]
    assert drawn == [2, 5, 6]
    assert (tmp_path / "curves.png").read_text() == "[2, 5, 6]"
    assert not (tmp_path / ".curves.png").exists()


def test_what_is_drawn_already_or_has_no_evaluation_is_not_drawn_again(tmp_path: Path, drawn: list[int]) -> None:
    with MetricsLog(TrainConfig(env="point_u_maze", out=tmp_path), keep_until=0) as log:
        log.write({"env_steps": 0})
        log.draw_curves()
    with MetricsLog(TrainConfig(env="point_u_maze", out=tmp_path), keep_until=0):
        pass
    assert drawn == [1]


def test_an_error_that_ends_a_run_leaves_curves_and_is_not_replaced_by_one_of_drawing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: list[int]
) -> None:
    def fail(count: "itertools.count[int]") -> None:
        with MetricsLog(TrainConfig(env="point_u_maze", out=tmp_path), keep_until=0) as log:
            log.write({"env_steps": next(count)})
            raise FloatingPointError("the loss is NaN")

    with pytest.raises(FloatingPointError, match="the loss is NaN"):
        fail(itertools.count())
    assert drawn == [1]

    def full(*_: object, **__: object) -> Path:
        raise OSError("no space left")

    monkeypatch.setattr(curves, "draw", full)
    with pytest.raises(FloatingPointError, match="the loss is NaN"):
        fail(itertools.count())
    with (
        pytest.raises(OSError, match="no space left"),
        MetricsLog(TrainConfig(env="point_u_maze", out=tmp_path), keep_until=0) as log,
    ):
        log.write({"env_steps": 1})
