"""Whether a version on disk is complete, and whether its files have changed, through symbolic links, too."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.policies import version_files


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A version that consists of a manifest, and of a folder that is a link to blobs/."""
    blobs, version = tmp_path / "blobs", tmp_path / "1000"
    (blobs / "d").mkdir(parents=True)
    (blobs / "d" / "array").write_text("123")
    version.mkdir()
    (version / "manifest.json").write_text("{}")
    (version / "params").symlink_to("../blobs")
    return version


def names(version: Path) -> list[str]:
    return sorted(name for name, *_ in version_files.scan(version))


def test_the_files_of_a_version_are_found_through_links(version: Path) -> None:
    assert names(version) == ["manifest.json", "params", "params/d", "params/d/array"]
    link = version.parent / "2000"
    link.symlink_to("1000")
    assert names(link) == names(version)
    assert version_files.scan(version.parent / "3000") == frozenset()


def test_a_version_is_complete_once_its_manifest_is_there(version: Path) -> None:
    assert version_files.is_complete(version_files.scan(version))
    (version / "manifest.json").rename(version.parent / "manifest.json")
    assert not version_files.is_complete(version_files.scan(version))
    (version / "manifest.json").symlink_to("../nowhere")
    assert not version_files.is_complete(version_files.scan(version))
    (version.parent / "nowhere").write_text("{}")
    assert version_files.is_complete(version_files.scan(version))


def write(version: Path) -> None:
    (version.parent / "blobs" / "d" / "array").write_text("1234")


def replace(version: Path) -> None:
    """Lead the link to files of the same names, sizes and times."""
    array, other = version.parent / "blobs" / "d" / "array", version.parent / "others" / "d" / "array"
    other.parent.mkdir(parents=True)
    other.write_text("321")
    for old, new in ((array, other), (array.parent, other.parent), (array.parent.parent, other.parent.parent)):
        os.utime(new, ns=(old.stat().st_atime_ns, old.stat().st_mtime_ns))
    (version / "params").unlink()
    (version / "params").symlink_to("../others")


def remove(version: Path) -> None:
    (version.parent / "blobs" / "d" / "array").unlink()


@pytest.mark.parametrize("change", [write, replace, remove])
def test_a_change_behind_a_link_is_noticed(version: Path, change: Callable[[Path], None]) -> None:
    before = version_files.scan(version)
    assert version_files.scan(version) == before
    change(version)
    assert version_files.scan(version) != before


def test_links_in_a_circle_and_to_many_files_end(version: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (version / "again").symlink_to(".")
    (version.parent / "blobs" / "up").symlink_to("../1000")
    assert names(version) == [
        "again",
        "manifest.json",
        "params",
        "params/d",
        "params/d/array",
        "params/up",
    ]
    monkeypatch.setattr(version_files, "MAX_FILES", 4)
    assert len(names(version)) == 4
