"""Simulated robots that a local policy drives, without a server."""

import io
import json
from pathlib import Path

import jax
import pytest
import rich.console

from clients.sim import fleet
from clients.sim import run as sim
from kilolayer import LocalPolicy, PolicyClient
from policy import published
from tests.clients.exports import exported, publish, serving
from training.envs import registry

EXAMPLE = Path(__file__).parents[2] / "docs/examples/point_u_maze"
EPISODES = 128


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("untrained")
    return exported(publish(root / "policies"), root / "exported")


def run(*arguments: str) -> int:
    return sim.main(["--env", "point_u_maze", "--robots", "3", "--timeout-s", "60", *arguments])


def test_robots_drive_with_a_local_policy_and_report_to_nobody(
    untrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--local", str(untrained), "--episodes", "5", "--episode-length", "4", "--out", str(tmp_path)) == 0
    said = capsys.readouterr().err
    assert f"point_u_maze is ready in {untrained}" in said
    assert "reported" not in said
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["versions"] == {"1000": 20}
    assert (summary["requests"], summary["missed"], summary["mean_batch_rows"]) == (20, 0, 1)


def test_a_folder_that_is_no_export_or_fits_no_robot_ends_with_one_line(
    untrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, status, complaint in (
        (["--local", str(tmp_path)], 1, f"error: {tmp_path} is not an exported policy: manifest.json is missing"),
        (["--local", str(untrained), "--policy", "ant"], 2, "error: policy is the name of a server's policy"),
    ):
        assert run(*arguments) == status
        assert capsys.readouterr().err.startswith(complaint)
    config = sim.DriveConfig(env="point_big_maze", local=untrained)
    with pytest.raises(sim.DriveError, match="the policy was trained on point_u_maze, not point_big_maze"):
        sim.run(config, console=rich.console.Console(file=io.StringIO()))


def goals_reached(clients: list[PolicyClient] | list[LocalPolicy]) -> int:
    env = registry.make("point_u_maze")
    length = env.spec.episode_length
    drive = fleet.drive(env, clients, key=jax.random.key(0), episodes=EPISODES, episode_length=length)
    episodes = list(drive)
    assert sum(episode.missed for episode in episodes) == 0
    return sum(episode.touched for episode in episodes)


@pytest.mark.slow
def test_a_trained_policy_reaches_as_many_goals_without_a_server_as_with_one(tmp_path: Path) -> None:
    (version,) = published.versions(EXAMPLE)
    folder = exported(EXAMPLE / str(version), tmp_path / "exported")
    with serving(EXAMPLE, max_batch_rows=32) as client:
        expected = goals_reached([client] * 32)
    assert expected > 0.9 * EPISODES
    for backend in ("onnx", "numpy"):
        with LocalPolicy(folder, backend=backend, timeout_s=60) as local:
            assert abs(goals_reached([local] * 32) - expected) <= 2, backend
