"""What TensorBoard finds in a run's folder."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

pytestmark = pytest.mark.usefixtures("without_physics")


def test_the_settings_of_a_run_are_tensorboards_hyperparameters(finished: Path) -> None:
    (events,) = (finished / "tensorboard").iterdir()  # beside the metrics, not in a folder of their own
    found: dict[str, HParamsPluginData] = {}
    for event in EventFileLoader(str(events)).Load():
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name == "hparams":
                found[value.tag] = HParamsPluginData.FromString(value.metadata.plugin_data.content)
    settings = found["_hparams_/session_start_info"].session_start_info.hparams
    assert settings["unroll_length"].number_value == 5
    assert settings["energy"].string_value == "l2"
    assert settings["layer_norm"].bool_value is True
    assert settings["max_minutes"].string_value == "not set"
    compared = [metric.name.tag for metric in found["_hparams_/experiment"].experiment.metric_infos]
    assert compared == ["eval/stay", "eval/touched", "eval/time_at_goal"]
    assert "_hparams_/session_end_info" in found
