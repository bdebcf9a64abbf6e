"""The way through the house with real processes: train two rounds, publish, serve, act, drive."""

import contextlib
import dataclasses
import json
import re
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from kilolayer import PolicyClient, PolicyNotFound
from policy import bundle
from policy.acting import act

ROOT = Path(__file__).resolve().parent.parent
TINY = {
    "num-envs": 8,
    "unroll-length": 5,
    "episode-length": 20,
    "total-env-steps": 160,
    "num-evals": 1,
    "updates-per-unroll": 1,
    "batch-size": 16,
    "max-replay-size": 23,
    "min-replay-size": 10,
    "actor-width": 16,
    "critic-width": 16,
    "representation-dim": 8,
    "eval-episodes": 4,
    "resample-goal-probability": 0.1,
    "preset": "paper",
}
STATISTICS = ("normalization_mean", "normalization_std", "seen_mean", "seen_std", "seen_low", "seen_high")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=900, check=False
    )


def train(out: Path, *more: str, **changes: int) -> Path:
    settings = TINY | {name.replace("_", "-"): number for name, number in changes.items()}
    flags = [word for name, number in settings.items() for word in (f"--{name}", str(number))]
    done = run("training/run.py", "--env", "point_u_maze", "--out", str(out), *flags, *more)
    assert done.returncode == 0, done.stderr
    assert "policy in" in done.stdout
    return out


@contextlib.contextmanager
def served(policies: Path) -> Generator[str]:
    """The address of a server process, ended by SIGTERM, which must be clean."""
    server = subprocess.Popen(
        [
            sys.executable,
            "serving/run.py",
            "--policies",
            str(policies),
            "--listen",
            "127.0.0.1:0",
            "--metrics-port",
            "0",
            "--no-metrics",
            "--max-queue-age-s",
            "60",  # the machine may be busy
        ],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stderr is not None
    ready = next((found for line in server.stderr if (found := re.search(r"ready: grpc=(\S+)", line))), None)
    assert ready is not None, "the server ended before it was ready"
    try:
        yield ready.group(1)
    finally:
        server.send_signal(signal.SIGTERM)
        _, said = server.communicate(timeout=120)
    assert server.returncode == 0, said


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("run") / "tiny", "--normalize-observations")


@pytest.fixture(scope="module")
def address(trained: Path) -> Iterator[str]:
    with served(trained / "policies") as address:
        yield address


def test_the_served_action_is_the_trained_policys(trained: Path, address: str) -> None:
    published = bundle.read(trained / "policies" / "160")
    random = np.random.default_rng(0)
    state = random.normal(size=(33, 4)).astype(np.float32)
    goal = random.normal(size=(33, 2)).astype(np.float32)
    expected = np.asarray(act(published.params, jnp.asarray(state), jnp.asarray(goal)))
    with (
        PolicyClient(address, timeout_s=60) as client,
        PolicyClient(address, policy="ant", timeout_s=60) as other,
    ):
        description = client.describe()
        assert description.manifest_sha256 == published.manifest_sha256
        assert (description.name, description.version) == ("point_u_maze", "160")
        assert description.normalize_observations
        assert all(getattr(description, fact) for fact in STATISTICS)
        for name, stored in dataclasses.asdict(published.spec).items():
            told = getattr(description, name)
            # numbers of a list travel as float32
            assert told == (pytest.approx(stored) if isinstance(stored, tuple) and "names" not in name else stored), (
                name
            )
        np.testing.assert_allclose(client.act(state, goal).action, expected, atol=1e-6)
        for row in range(5):
            np.testing.assert_allclose(client.act(state[row], goal[row]).action, expected[row], atol=1e-6)
        with pytest.raises(PolicyNotFound, match="point_u_maze"):
            other.act(state[0], goal[0])


@pytest.mark.slow
def test_a_thousand_layers_are_trained_served_and_answer(tmp_path: Path) -> None:
    out = train(tmp_path / "deep", actor_depth=1024, critic_depth=1024, updates_per_unroll=2)
    published = bundle.read(out / "policies" / "160")
    assert published.params.actor.params["blocks"]["kernel"].shape == (256, 4, 16, 16)
    rows = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert np.isfinite([rows["loss/critic"], rows["loss/actor"]]).all()
    random = np.random.default_rng(0)
    state, goal = (random.uniform(-3, 3, size=(4, size)).astype(np.float32) for size in (4, 2))
    with served(out / "policies") as address, PolicyClient(address, timeout_s=60) as client:
        assert client.describe().actor_depth == 1024
        found = client.act(state, goal).action
    # a thousand layers add up what different batch sizes round differently
    np.testing.assert_allclose(found, act(published.params, jnp.asarray(state), jnp.asarray(goal)), atol=1e-5)


def test_robots_drive_through_the_server(trained: Path, address: str, tmp_path: Path) -> None:
    arguments = ["--env", "point_u_maze", "--address", address, "--robots", "3", "--episodes", "5"]
    arguments += ["--timeout-s", "60"]  # the machine may be busy
    files = ["--out", str(tmp_path), "--video", str(tmp_path / "film.mp4"), "--picture", str(tmp_path / "end.png")]
    driven = run("clients/sim/run.py", *arguments, "--episode-length", "6", *files)
    assert driven.returncode == 0, driven.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["episodes"], summary["robots"], summary["requests"], summary["missed"]) == (5, 3, 30, 0)
    assert (summary["policy"], summary["versions"]) == ("point_u_maze", {"160": 30})
    assert 1 <= summary["mean_batch_rows"] <= 3
    assert 0 < summary["latency_p50_ms"] <= summary["latency_p99_ms"]
    assert (tmp_path / "paths.png").read_bytes().startswith(b"\x89PNG")
    if "no pictures: neither EGL nor OSMesa" not in driven.stderr:  # on a machine that cannot draw, that is all
        assert (tmp_path / "film.mp4").read_bytes()[4:8] == b"ftyp"
        assert (tmp_path / "end.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_drive_says_why_it_failed(address: str) -> None:
    arguments = ["--env", "point_u_maze", "--address", address, "--robots", "3", "--episodes", "5"]
    # an untrained policy does not reach goals within half a second, and the exit code says so when asked to
    strict = run("clients/sim/run.py", *arguments, "--episode-length", "6", "--min-stay-rate", "1")
    assert strict.returncode == 1
    assert re.search(r"the stay at the goals is 0\.\d+, below min_stay_rate 1", strict.stderr)

    wrong = run("clients/sim/run.py", "--env", "point_big_maze", "--address", address)
    assert wrong.returncode == 1
    assert "trained on point_u_maze, not point_big_maze" in wrong.stderr
    assert "Traceback" not in wrong.stderr


@pytest.mark.slow
def test_an_address_without_a_server_gives_a_one_line_error(tmp_path: Path) -> None:
    alone = run("clients/sim/run.py", "--env", "point_u_maze", "--address", "127.0.0.1:1", "--wait-for-server-s", "0.5")
    assert alone.returncode == 1
    assert "127.0.0.1:1" in alone.stderr
    assert "Traceback" not in alone.stderr
