"""Which of a run's policies is the best one."""

import json
from pathlib import Path

import pytest

from policy.bundle import FORMAT_VERSION
from policy.verified_folder import write_manifest
from training.run_dir.best import best_version, stays_in_words


def write_versions(root: Path, found: dict[int, object]) -> None:
    for version, metrics in found.items():
        folder = root / str(version)
        folder.mkdir(parents=True)
        (folder / "policy.json").write_text(json.dumps({"provenance": {"metrics": metrics}}))
        write_manifest(folder, FORMAT_VERSION)


@pytest.mark.parametrize(
    ("found", "best"),
    [
        ({}, None),
        ({100: {"eval/stay": 0.5}, 200: {"eval/stay": 0.75}, 300: {"eval/stay": 0.625}}, 200),
        ({100: {"eval/stay": 0.75}, 200: {"eval/stay": 0.75}}, 200),  # the newer of two
        ({100: {"eval/stay": 0.0}, 200: {"eval/touched": 1.0}, 300: None}, 100),  # no figure counts as the lowest
        ({100: {"eval/stay": float("nan")}, 200: {"eval/stay": "high"}}, 200),
        ({90: {"eval/stay": 0.5}, 1000: {"eval/stay": 0.5}}, 1000),  # by number, not by letters
    ],
)
def test_the_best_version_has_the_highest_stay(tmp_path: Path, found: dict[int, object], best: int | None) -> None:
    write_versions(tmp_path, found)
    assert best_version(tmp_path) == best


def test_the_stays_of_two_versions_have_the_digits_that_tell_them_apart(tmp_path: Path) -> None:
    found = {100: {"eval/stay": 0.99951}, 200: {"eval/stay": 0.9987}, 300: {"eval/stay": 0.75}, 400: None}
    write_versions(tmp_path, found)
    assert stays_in_words(tmp_path, 200, 100) == ["eval/stay 0.999", "eval/stay 1.000"]
    assert stays_in_words(tmp_path, 300, 100) == ["eval/stay 0.75", "eval/stay 1.00"]
    assert stays_in_words(tmp_path, 400, 100) == ["no eval/stay", "eval/stay 1.00"]
    assert stays_in_words(tmp_path, 100) == ["eval/stay 1.00"]


def test_a_damaged_version_is_not_the_best(tmp_path: Path) -> None:
    write_versions(tmp_path, {100: {"eval/stay": 0.5}, 200: {"eval/stay": 1.0}})
    (tmp_path / "200" / "policy.json").write_text("{")
    assert best_version(tmp_path) == 100
