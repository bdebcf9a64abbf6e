"""The record of a run's evaluations: what a kill or a full disk leaves of it, and what TensorBoard finds in it."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboardX.record_writer import RecordWriter

from tests.failing_disk import FailingDisk
from training.config import TrainConfig
from training.run_dir import curves
from training.run_dir.metrics_log import MetricsLog, read_metrics

ROWS = ({"env_steps": 120, "eval/stay": 0.25}, {"env_steps": 240, "eval/stay": 0.5})


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    """Of a run without curves: drawing takes a second."""
    monkeypatch.setattr(curves, "draw", lambda _, path, **__: path.touch())
    return TrainConfig(env="point_u_maze", out=tmp_path)


def write(config: TrainConfig, *rows: dict[str, float], keep_until: int = 0) -> None:
    with MetricsLog(config, keep_until=keep_until) as log:
        for row in rows:
            log.write(row)


def hparams(folder: Path) -> Iterator[tuple[str, HParamsPluginData]]:
    (events,) = folder.iterdir()  # beside the metrics, not in a folder of their own
    for event in EventFileLoader(str(events)).Load():
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name == "hparams":
                yield value.tag, HParamsPluginData.FromString(value.metadata.plugin_data.content)


@pytest.mark.usefixtures("without_physics")
def test_the_settings_of_a_run_are_tensorboards_hyperparameters(finished: Path) -> None:
    found = dict(hparams(finished / "tensorboard"))
    settings = found["_hparams_/session_start_info"].session_start_info.hparams
    assert settings["unroll_length"].number_value == 5
    assert settings["energy"].string_value == "l2"
    assert settings["layer_norm"].bool_value is True
    assert settings["max_minutes"].string_value == "not set"
    compared = [metric.name.tag for metric in found["_hparams_/experiment"].experiment.metric_infos]
    assert compared == ["eval/stay", "eval/touched", "eval/time_at_goal"]
    assert "_hparams_/session_end_info" in found


def test_tensorboard_shows_the_rows_that_a_resumed_run_has_kept_and_its_new_ones(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", iter(range(1_000_000_000, 2_000_000_000)).__next__)  # a file for each second
    write(config, *ROWS)
    write(config, {"env_steps": 240, "eval/stay": 0.75}, keep_until=120)
    shown = EventAccumulator(str(config.out / "tensorboard")).Reload().Scalars("eval/stay")
    assert [(event.step, event.value) for event in shown] == [(120, 0.25), (240, 0.75)]


def test_a_resumed_run_rewrites_its_metrics_only_to_drop_rows(config: TrainConfig) -> None:
    write(config, *ROWS)
    path = config.out / "metrics.jsonl"
    number = path.stat().st_ino
    write(config, keep_until=240)
    assert path.stat().st_ino == number
    with path.open("a") as file:
        file.write('{"env_steps": 36')  # of a process that was killed
    write(config, {"env_steps": 360}, keep_until=240)
    assert read_metrics(config.out) == [*ROWS, {"env_steps": 360}]
    write(config, keep_until=120)
    assert read_metrics(config.out) == [ROWS[0]]


@pytest.mark.parametrize("operation", ["write", "fsync", "rename"])
def test_a_resume_that_fails_loses_no_earlier_row(config: TrainConfig, operation: str) -> None:
    write(config, *ROWS)
    before = (config.out / "metrics.jsonl").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        disk = FailingDisk(patch)
        write(config, keep_until=120)
    number = disk.operations.index(operation)
    (config.out / "metrics.jsonl").write_bytes(before)
    with pytest.MonkeyPatch.context() as patch:
        FailingDisk(patch, fail_at=number)
        with pytest.raises(OSError, match=r"metrics\.jsonl cannot be written: No space left on device"):
            MetricsLog(config, keep_until=120)
    assert (config.out / "metrics.jsonl").read_bytes() == before


@pytest.mark.timeout(60)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_a_disk_that_fails_once_at_the_events_is_an_error_that_names_their_folder(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """In the thread of tensorboardX, it would end only the thread, and the run would wait for room in its queue."""
    row = {"env_steps": 120} | {f"figure/{number}": 0.0 for number in range(30)}
    flush, failures = RecordWriter.flush, [OSError(code, os.strerror(code))]

    def fail_once(writer: RecordWriter) -> None:
        if failures:
            raise failures.pop()
        flush(writer)

    monkeypatch.setattr(RecordWriter, "flush", fail_once)
    with pytest.raises(OSError, match=f"{config.out}/tensorboard cannot be written: {os.strerror(code)}"):
        write(config, row, row)
    assert read_metrics(config.out) == [row]


def test_a_row_that_cannot_be_written_is_an_error_that_names_the_file(config: TrainConfig) -> None:
    with pytest.raises(OSError, match=r"metrics\.jsonl cannot be written: No space left on device"):
        write_to_a_full_disk(config)
    assert read_metrics(config.out) == [ROWS[0]]


def write_to_a_full_disk(config: TrainConfig) -> None:
    with MetricsLog(config, keep_until=0) as log, pytest.MonkeyPatch.context() as patch:
        FailingDisk(patch, fail_at=0)  # the fsync of the row
        log.write(ROWS[0])
