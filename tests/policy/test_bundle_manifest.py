"""The list of a bundle's files and their hashes: whatever is not as published is noticed."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest

from policy import bundle
from tests.policy.bundles import recompute_manifest, refusal


def test_versions_are_sorted_as_numbers_and_nothing_else_is_listed(tmp_path: Path) -> None:
    for name in ("0", "9", "10", "007", "-1", "latest", "1e3", "٣", ".writing-11-abcd"):
        (tmp_path / name).mkdir()
    (tmp_path / "12").write_text("a file")
    assert bundle.versions(tmp_path) == [0, 9, 10]
    assert bundle.versions(tmp_path / "absent") == []


def test_every_flipped_bit_is_noticed(published: Path, damaged: Path) -> None:
    files = [file for file in damaged.rglob("*") if file.is_file() and file.name != "manifest.json"]
    assert len(files) > 8
    rng = random.Random(0)
    for file in files:
        original = file.read_bytes()
        for position in {0, len(original) - 1, rng.randrange(len(original))}:
            flipped = bytearray(original)
            flipped[position] ^= 1 << rng.randrange(8)
            file.write_bytes(flipped)
            error = refusal(damaged)
            assert error.reason == "hash"
            assert file.relative_to(damaged).as_posix() in str(error)
        file.write_bytes(original)
    assert bundle.read(damaged).version == 200


def test_every_flipped_byte_of_the_manifest_is_noticed(damaged: Path) -> None:
    manifest = damaged / "manifest.json"
    original = manifest.read_bytes()
    for position in (*range(200), *range(200, len(original), 11)):
        flipped = bytearray(original)
        flipped[position] ^= 1
        manifest.write_bytes(flipped)
        assert refusal(damaged).reason in {"manifest", "files", "hash"}


def test_truncated_grown_and_missing_files_are_noticed(damaged: Path) -> None:
    for file in [file for file in damaged.rglob("*") if file.is_file()]:
        original = file.read_bytes()
        own = file.name == "manifest.json" and file.parent == damaged
        file.write_bytes(original[: len(original) // 2])
        assert refusal(damaged).reason == ("manifest" if own else "hash")
        file.write_bytes(original[:-1])  # of the manifest, the last byte is only a newline
        assert refusal(damaged).reason == ("manifest" if own else "hash")
        if not own:
            file.write_bytes(original + b"\0")
            assert refusal(damaged).reason == "hash"
        file.unlink()
        assert refusal(damaged).reason == ("manifest" if own else "files")
        file.write_bytes(original)
    assert bundle.read(damaged).version == 200


@pytest.mark.parametrize("name", ["params.pkl", "params/d/more", ".hidden", "policy.json.bak"])
def test_a_foreign_file_is_noticed(damaged: Path, name: str) -> None:
    (damaged / name).write_bytes(b"\x80\x04N.")  # None, pickled
    error = refusal(damaged)
    assert error.reason == "files"
    assert f"{name} does not belong" in str(error)


def test_a_foreign_file_is_noticed_even_if_the_manifest_names_it(damaged: Path) -> None:
    (damaged / "params.pkl").write_bytes(b"\x80\x04N.")
    recompute_manifest(damaged)
    assert refusal(damaged).reason == "files"


@pytest.mark.parametrize("name", ["policy.json", "probes.npz", "manifest.json", "params/_METADATA"])
def test_a_link_to_outside_is_refused_even_to_the_same_contents(damaged: Path, tmp_path: Path, name: str) -> None:
    (damaged / name).rename(tmp_path / "elsewhere")
    (damaged / name).symlink_to(tmp_path / "elsewhere")
    assert refusal(damaged).reason == ("manifest" if name == "manifest.json" else "files")


def test_a_linked_folder_outside_is_refused(damaged: Path, tmp_path: Path) -> None:
    (damaged / "params").rename(tmp_path / "elsewhere")
    (damaged / "params").symlink_to(tmp_path / "elsewhere")
    assert refusal(damaged).reason == "files"


def test_a_bundle_of_hard_links_is_read_while_the_content_is_right(damaged: Path, tmp_path: Path) -> None:
    backup = Path(shutil.copytree(damaged, tmp_path / "backup" / damaged.name, copy_function=os.link))  # cp -al
    assert (backup / "policy.json").stat().st_nlink == 2
    assert bundle.read(backup).version == 200
    content = (damaged / "policy.json").read_bytes()
    (damaged / "policy.json").write_bytes(content[:-1] + b" ")  # changes the backup's file, too
    error = refusal(backup)
    assert error.reason == "hash"
    assert "policy.json has changed" in str(error)


def test_a_huge_manifest_is_refused_without_reading_it(damaged: Path) -> None:
    os.truncate(damaged / "manifest.json", 50 << 30)  # more than any memory here; on disk it takes nothing
    error = refusal(damaged)
    assert error.reason == "manifest"
    assert f"manifest.json has {50 << 30} bytes" in str(error)


@pytest.mark.parametrize("name", ["policy.json", "manifest.json"])
def test_a_pipe_is_refused_without_waiting_for_a_writer(damaged: Path, name: str) -> None:
    (damaged / name).unlink()
    os.mkfifo(damaged / name)
    assert refusal(damaged).reason == ("manifest" if name == "manifest.json" else "files")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": 3}',
        '{"format": 3, "files": []}',
        '{"format": 3, "files": {"policy.json": 5}}',
        '{"format": 3, "files": {"policy.json": {"size": 5}}}',
        '{"format": 1, "files": {}}',
        pytest.param("[" * 100_000, id="nested too deep"),
    ],
)
def test_a_manifest_of_another_shape_is_refused(damaged: Path, text: str) -> None:
    (damaged / "manifest.json").write_text(text + "\n")
    assert refusal(damaged).reason == "manifest"


@pytest.mark.parametrize("size", ["Infinity", "-1", '"12"', "null", "[]"])
def test_a_manifest_with_an_impossible_size_is_refused(damaged: Path, size: str) -> None:
    recompute_manifest(damaged)
    manifest = json.loads((damaged / "manifest.json").read_text())
    manifest["files"]["policy.json"]["size"] = "SIZE"
    (damaged / "manifest.json").write_text(json.dumps(manifest).replace('"SIZE"', size) + "\n")
    assert refusal(damaged).reason == "hash"
