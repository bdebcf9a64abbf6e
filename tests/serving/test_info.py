"""What the metrics say of the program and of its policies."""

import json
import re
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from serving.telemetry import info
from serving.telemetry.metrics import Metrics
from tests.samples import policy_spec

ROOT = Path(__file__).parents[2]


def git(folder: Path, *words: str) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_is_that_of_the_checkout_and_says_what_is_not_committed(tmp_path: Path) -> None:
    clean, dirty = tmp_path / "clean", tmp_path / "dirty"
    clean.mkdir()
    git(clean, "init", "-q")
    (clean / "file").write_text("1")
    git(clean, "add", "file")
    git(clean, "commit", "-q", "-m", "first")
    head = git(clean, "rev-parse", "HEAD")
    git(tmp_path, "clone", "-q", str(clean), str(dirty))
    (dirty / "file").write_text("2")
    assert info.commit(clean) == head
    assert info.commit(dirty) == f"{head}-dirty"


class Installed:
    """A distribution that pip installed from a commit."""

    def read_text(self, name: str) -> str:
        assert name == "direct_url.json"
        return json.dumps({"url": "https://host/x.git", "vcs_info": {"vcs": "git", "commit_id": "c0ffee"}})


def test_in_the_image_files_name_the_commit_and_the_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", not_installed)
    (tmp_path / "commit.txt").write_text("c0ffee\n")
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    assert info.commit(tmp_path) == "c0ffee"
    assert info.version(tmp_path) == "1.2.3"


def test_without_a_checkout_the_commit_is_the_one_that_pip_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "distribution", lambda _: Installed())
    assert info.commit(tmp_path / "elsewhere") == "c0ffee"


def test_the_metrics_name_the_release_and_each_policy() -> None:
    collectors = CollectorRegistry()
    metrics = Metrics(collectors)
    metrics.describe_build(device="cpu")
    spec = policy_spec(name="maze", control_period_s=0.05, actor_depth=8)
    metrics.show_live(spec, version=1000)
    families = {family.name: family for family in collectors.collect()}
    (build,) = families["kilolayer_build_info"].samples
    assert build.value == 1
    assert (build.labels["jax"], build.labels["device"]) == (metadata.version("jax"), "cpu")
    project = (ROOT / "pyproject.toml").read_text()
    assert [build.labels["version"]] == re.findall(r'^version = "(.*)"$', project, re.MULTILINE)
    (policy,) = families["kilolayer_policy_info"].samples
    assert policy.value == 1
    assert policy.labels == {
        "policy": "maze",
        "version": "1000",
        "environment": spec.environment,
        "actor_depth": "8",
        "actor_width": str(spec.actor_width),
        "critic": spec.critic,
        "critic_depth": str(spec.critic_depth),
        "action_chunk": "1",
        "state_dim": "4",
        "goal_dim": "2",
        "action_dim": "2",
        "control_period_s": "0.05",
    }
