"""kilolayer-policy show."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from policy.spec import PolicySpec
from tests.samples import WITHOUT_CRITIC
from tests.training.policy_command.conftest import METRICS, SPEC, Command, publish
from training.policy_command.run import main


def test_it_shows_the_newest_version_of_a_folder_and_what_the_folder_holds(policies: Path, command: Command) -> None:
    code, shown = command("show", policies)
    assert code == 0
    assert (shown["path"], shown["version"], shown["versions"]) == (str(policies / "2000"), 2000, [1000, 2000])
    assert PolicySpec.from_fields(shown["spec"]) == SPEC
    assert shown["provenance"]["metrics"] == METRICS
    files = [file for file in (policies / "2000").rglob("*") if file.is_file() and file.name != "manifest.json"]
    assert (shown["files"], shown["bytes"]) == (len(files), sum(file.stat().st_size for file in files))
    assert command("show", policies, "--version", 1000)[1]["version"] == 1000
    assert command("show", policies / "1000")[1]["version"] == 1000


def test_the_parameters_are_counted(policies: Path, command: Command) -> None:
    """Width 16 and depth 4: an input layer, four layers of 16 x 16, each with bias, scale and shift, and an output."""

    def network(inputs: int, outputs: int) -> int:
        return (inputs + 3) * 16 + 4 * (16 + 3) * 16 + (16 + 1) * outputs

    assert command("show", policies)[1]["parameters"] == {
        "actor": network(4 + 2, 2 * 2),
        "state_action_encoder": network(4 + 2, 8),
        "goal_encoder": network(2, 8),
    }


def test_the_text_has_names_units_limits_and_metrics(policies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(policies)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"point_u_maze version 2000: {policies / '2000'}"
    for line in (
        "  actor        depth 4, width 16, 1,428 parameters",
        "  period       0.08 s",
        "  state        4 values: x [m], y [m], vx [m/s], vy [m/s]",
        "               force x [N]: -4 to 4, 0 at rest; other, absolute",
        "  metrics      env_steps 2000, eval/stay 0.5, eval/touched_count 64",
        "  date         2026-01-01T00:00:00+00:00",
    ):
        assert line in lines


def test_a_policy_without_a_critic_and_with_chunks_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = dataclasses.replace(SPEC, action_chunk=3, rest_action=(0.5, 0.0), **WITHOUT_CRITIC)
    publish(tmp_path, 1, spec=spec)
    assert main(["show", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  critic       none" in lines
    assert "  action       2 values, 3 consecutive ones per inference" in lines
    assert "               force x [N]: -4 to 4, 2 at rest; other, absolute" in lines


def test_a_changed_file_is_named(policies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = shutil.copytree(policies / "1000", tmp_path / "1000")
    with (damaged / "policy.json").open("a") as file:
        file.write(" ")
    assert main(["show", str(damaged)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {damaged} is damaged: policy.json has ")


def test_numbers_that_json_does_not_have_are_null(tmp_path: Path, command: Command) -> None:
    publish(tmp_path, 1, provenance={"metrics": {"loss": float("nan"), "losses": [float("inf"), 1.5]}})
    assert command("show", tmp_path)[1]["provenance"]["metrics"] == {"loss": None, "losses": [None, 1.5]}
