"""Runs and policies of older formats, as their releases stored them, are opened by this one."""

import dataclasses
import json
import re
import tarfile
from pathlib import Path

import pytest

from policy import bundle
from tests.data import make_run
from training import trainer
from training.config import TrainConfig
from training.run_dir import config_file
from training.run_dir.metrics_log import read_metrics

ROOT = Path(__file__).parents[2]
FORMATS = range(2, config_file.FORMAT + 1)  # no run of format 1 was stored
POLICY_FORMATS = {2: 3}  # of the policy in the run of each format of config.json
MOST_BYTES = 150_000


@pytest.fixture(params=FORMATS, ids=lambda number: f"format {number}")
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[int, Path]:
    """The number of a format, and a copy of its run."""
    file = make_run.HERE / f"run_format_{request.param}.tar.gz"
    assert file.stat().st_size < MOST_BYTES
    with tarfile.open(file) as archive:
        archive.extractall(tmp_path, filter="data")
    return request.param, tmp_path / "run"


def test_a_policy_of_every_format_is_read(stored: tuple[int, Path]) -> None:
    number, run = stored
    assert json.loads((run / "policies/120/manifest.json").read_text())["format"] == POLICY_FORMATS[number]
    policy = bundle.read(run / "policies" / "120")
    assert (policy.version, policy.spec.name, policy.spec.actor_width) == (120, "point_u_maze", 16)


@pytest.mark.usefixtures("without_physics")
def test_a_run_of_every_format_is_resumed(stored: tuple[int, Path]) -> None:
    _, run = stored
    config = config_file.to_resume(run)
    assert (config.num_envs, config.unroll_length, config.out) == (8, 5, run)
    trainer.train(dataclasses.replace(config, total_env_steps=160))
    assert [row["env_steps"] for row in read_metrics(run)] == [120, 160]
    assert bundle.versions(run / "policies") == [120, 160]
    now = json.loads((run / "config.json").read_text())
    assert now["format"] == config_file.FORMAT


def test_every_field_is_in_the_file_of_the_newest_format(stored: tuple[int, Path]) -> None:
    """A new field needs a new format, and its value for the older ones; see docs/upgrading.md."""
    number, run = stored
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    in_file = json.loads((run / "config.json").read_text()).keys()
    assert fields <= config_file.read(run).keys()
    if number == config_file.FORMAT:
        assert fields <= in_file


def test_the_stored_runs_name_no_machine(stored: tuple[int, Path]) -> None:
    """They were made in a folder below /tmp, with the command in make_run.py."""
    _, run = stored
    texts = [path.read_bytes() for path in run.rglob("*") if path.is_file()]
    assert len(texts) > 5
    assert not [text for text in texts if re.search(rb"/(home|root|work)/", text)]


def test_the_page_has_a_row_for_each_format() -> None:
    page = (ROOT / "docs/upgrading.md").read_text()
    runs, policies = (
        re.findall(r"^\| (\d+) \|", page.split(f"## {heading}")[1].split("\n## ")[0], flags=re.MULTILINE)
        for heading in ("Formats of a run", "Formats of a policy")
    )
    assert runs == [str(number) for number in range(1, config_file.FORMAT + 1)]
    assert policies == [str(number) for number in range(1, bundle.FORMAT_VERSION + 1)]
