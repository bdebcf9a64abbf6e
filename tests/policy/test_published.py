"""What is read of published versions without verifying them."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from policy import published
from policy.bundle import FORMAT_VERSION
from policy.published import DescriptionError, MissingVersionError
from policy.verified_folder import write_manifest


def publish(version: Path, description: Any) -> Path:
    """A version that consists of its description."""
    version.mkdir(parents=True)
    (version / "policy.json").write_text(json.dumps(description))
    write_manifest(version, FORMAT_VERSION)
    return version


def test_versions_are_folders_with_a_number_as_name(tmp_path: Path) -> None:
    for name in ("100", "90", "007", "-1", "1.5", "٣", ".writing-1-0123abcd"):
        (tmp_path / name).mkdir()
    (tmp_path / "5").write_text("")
    assert published.versions(tmp_path) == [90, 100]
    assert published.versions(tmp_path / "nowhere") == []


def test_a_version_has_one_name_of_at_most_18_digits() -> None:
    assert all(map(published.is_version, ["0", "7", "1000", "9" * 18]))
    assert not any(map(published.is_version, ["", "007", "-1", "1e3", "1_000", "\u0663", "9" * 19]))


def test_a_version_is_found_by_its_own_folder_or_in_the_folder_of_all_versions(tmp_path: Path) -> None:
    for version in ("9", "10"):
        publish(tmp_path / version, {})
    assert published.find(tmp_path) == tmp_path / "10"
    assert published.find(tmp_path, 9) == tmp_path / "9"
    assert published.find(tmp_path / "9") == published.find(tmp_path / "9", 9) == tmp_path / "9"


def test_a_version_is_found_through_a_link_and_from_within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = publish(tmp_path / "10", {})
    (tmp_path / "latest").symlink_to("10")
    assert published.find(tmp_path / "latest") == version
    monkeypatch.chdir(version)
    assert published.find(Path()) == version


def test_a_folder_of_versions_may_have_a_number_as_its_name(tmp_path: Path) -> None:
    publish(tmp_path / "42" / "7", {})
    assert published.find(tmp_path / "42") == tmp_path / "42" / "7"


def test_what_is_no_version_is_refused_with_what_to_name_instead(tmp_path: Path) -> None:
    publish(tmp_path / "run" / "policies" / "9", {})
    (tmp_path / "file").write_text("")
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "probes.safetensors").write_text("")
    name = "name a published version such as runs/first/policies/2000, or the folder of all versions"
    for folder, version, problem in (
        ("run/policies", 8, "has no version 8; it has 9"),
        ("run/policies/9", 8, "is version 9, and version 8 is asked for"),
        ("run", None, f"is a run; use {tmp_path / 'run/policies'}"),
        ("exported", None, f"is an export, which only `verify` and LocalPolicy read; {name}"),
        ("file", None, f"is not a folder; {name}"),
        ("5", None, f"does not exist; {name}"),
        ("", None, f"has no published version; {name}"),
    ):
        with pytest.raises(MissingVersionError) as refused:
            published.find(tmp_path / folder, version)
        assert str(refused.value) == f"{tmp_path / folder} {problem}"


@pytest.mark.parametrize(
    ("stays", "best_first"),
    [
        ({}, []),
        ({1: 0.5, 2: 0.75, 3: 0.25}, [2, 1, 3]),
        ({1: 0.5, 2: 0.5, 3: -math.inf, 4: -math.inf}, [2, 1, 4, 3]),  # of equal ones the newer
    ],
)
def test_the_best_version_has_the_highest_stay(stays: dict[int, float], best_first: list[int]) -> None:
    assert published.best_first(stays) == best_first


@pytest.mark.parametrize(
    ("provenance", "stay"),
    [
        ({"metrics": {"eval/stay": 0.5}}, 0.5),
        ({"metrics": {"eval/touched": 1.0}}, -math.inf),
        ({"metrics": {"eval/stay": float("nan")}}, -math.inf),
        ({"metrics": {"eval/stay": float("inf")}}, -math.inf),
        ({"metrics": {"eval/stay": 10**400}}, -math.inf),
        ({"metrics": [0.5]}, -math.inf),
        ({}, -math.inf),
    ],
)
def test_a_metric_is_a_finite_number_of_the_provenance(tmp_path: Path, provenance: dict[str, Any], stay: float) -> None:
    assert published.metric(publish(tmp_path / "1", {"provenance": provenance}), "eval/stay") == stay


def test_the_name_is_that_of_the_specification(tmp_path: Path) -> None:
    assert published.published_name(publish(tmp_path / "1", {"spec": {"name": "maze"}})) == "maze"


@pytest.mark.parametrize("description", [{"spec": {"name": "a b"}}, {"spec": {"name": 3}}, {"spec": {}}, [], "x"])
def test_a_description_without_a_valid_name_is_refused(tmp_path: Path, description: Any) -> None:
    with pytest.raises(DescriptionError, match=f"policy.json of {tmp_path / '1'} has no valid name"):
        published.published_name(publish(tmp_path / "1", description))


def test_a_description_that_is_not_the_published_one_has_no_name(tmp_path: Path) -> None:
    version = publish(tmp_path / "1", {"spec": {"name": "maze"}, "provenance": {"metrics": {"eval/stay": 0.5}}})
    content = (version / "policy.json").read_bytes()
    (version / "policy.json").write_bytes(content.replace(b"maze", b"mbze"))
    with pytest.raises(DescriptionError, match="has changed since it was published"):
        published.published_name(version)
    assert published.metric(version, "eval/stay") == -math.inf
    (version / "policy.json").write_bytes(content)
    (version / "manifest.json").write_text("{")
    with pytest.raises(DescriptionError, match="cannot be parsed"):
        published.published_name(version)
    (version / "policy.json").unlink()
    os.mkfifo(version / "policy.json")  # nobody writes to it
    with pytest.raises(DescriptionError, match="policy.json is not a file"):
        published.published_name(version)


def test_choosing_a_version_needs_no_jax() -> None:
    program = "import sys, serving.policies.source; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=False).returncode == 0
