"""The image for training: what can be compared without building it."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SIZES = re.compile(r"[<>=!~\[;].*")  # of a requirement, after its name


def stage(name: str) -> str:
    """The instructions of a stage of the Dockerfile."""
    (text,) = re.findall(rf"^FROM \S+ AS {name}\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL)
    return text


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_its_packages_are_those_of_training_and_have_hashes_in_the_lock(
    tmp_path: Path, project: dict[str, Any]
) -> None:
    """The program of the Dockerfile writes the three lists of names."""
    (program,) = re.findall(r'python -c "(import tomllib;.*?)"$', DOCKERFILE.replace("\\\n", ""), re.MULTILINE)
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=240)
    extras = project["optional-dependencies"]
    needed = (tmp_path / "train.txt").read_text().splitlines()
    assert needed == [*project["dependencies"], *extras["train"], *extras["warp"], *extras["cuda"]]
    locked = set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements/cuda13.txt").read_text(), re.MULTILINE))
    names = {SIZES.sub("", each).strip().lower() for each in needed}
    assert names - {name.lower() for name in locked} == set()
    assert "-r train.txt -c requirements/cuda13.txt" in stage("packages-training")
    assert "COPY --from=packages-training /opt/venv /opt/venv" in stage("training")


def test_its_command_is_that_of_an_installation(project: dict[str, Any]) -> None:
    module, function = project["scripts"]["kilolayer-train"].split(":")
    text = stage("training")
    assert f"'from {module} import {function}' '{function}()'" in text
    assert 'ENTRYPOINT ["kilolayer-train"]' in text
    assert "> /usr/local/bin/kilolayer-train" in text


def test_what_it_copies_is_sent_to_the_build() -> None:
    sent = (ROOT / ".dockerignore").read_text().split()
    copied = {
        source
        for text in map(stage, ("builder", "base", "training"))
        for source in re.findall(r"^COPY (?!--)(\S+?)/? ", text, re.MULTILINE)
    }
    assert copied == {"pyproject.toml", "requirements", "policy", "training"}
    assert {f"!{name}" for name in copied} <= set(sent)


def test_the_job_may_write_to_its_volume_as_the_user_of_the_image() -> None:
    pod = yaml.safe_load((ROOT / "deploy/kubernetes/train-job.yaml").read_text())["spec"]["template"]["spec"]
    assert re.findall(r"--uid (\d+)", stage("base")) == [str(pod["securityContext"]["fsGroup"])]
    assert f"USER {pod['securityContext']['fsGroup']}" in stage("training").splitlines()
    (container,) = pod["containers"]
    assert container["image"] == "kilolayer-train:latest"
    assert "--target training -t kilolayer-train ." in DOCKERFILE
