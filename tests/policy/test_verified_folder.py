"""A folder is complete or absent, whatever fails, and never half replaced or half removed."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from policy import verified_folder
from policy.verified_folder import DamageError
from tests.failing_disk import FailingDisk

FORMAT = 7
CODES = pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)


def write(target: Path, text: str) -> None:
    def fill(scratch: Path) -> None:
        (scratch / "sub").mkdir()
        (scratch / "one.txt").write_text(text)
        (scratch / "sub" / "two.txt").write_text(text * 2)

    def check(scratch: Path) -> None:
        if (scratch / "one.txt").read_text() != text:
            raise verified_folder.unreadable("one.txt is other")

    verified_folder.create(target, fill=fill, check=check, format_version=FORMAT, what="the note")


def read(target: Path) -> str:
    verified_folder.verify(target, format_version=FORMAT, belongs=lambda _: True)
    return (target / "one.txt").read_text()


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_folder_is_replaced_by_a_complete_one(tmp_path: Path) -> None:
    target = tmp_path / "new" / "3"
    write(target, "a")
    write(target, "b")
    assert read(target) == "b"
    assert names(target.parent) == ["3"]
    assert (target / "sub" / "two.txt").read_text() == "bb"


@CODES
def test_whatever_operation_fails_the_folder_is_as_it_was(tmp_path: Path, code: int) -> None:
    target = tmp_path / "notes" / "3"
    write(target, "a")
    with pytest.MonkeyPatch.context() as patch:
        disk = FailingDisk(patch)
        write(target, "b")
    assert sorted(set(disk.operations)) == ["fsync", "mkdir", "open", "rename", "write"]
    # the first one makes the parent, which is there
    for number, operation in enumerate(disk.operations[1:], start=1):
        with pytest.MonkeyPatch.context() as patch:
            FailingDisk(patch, fail_at=number, code=code)
            with pytest.raises(OSError, match=f"the note {target} cannot be written: {os.strerror(code)}") as failed:
                write(target, "c")
        assert failed.value.errno == code
        if number < len(disk.operations) - 2:  # the last two, fsync of the parent and a removal, come after the rename
            assert read(target) == "b", operation
            assert names(target.parent) == ["3"], operation
    write(target, "d")
    assert read(target) == "d"
    assert names(target.parent) == ["3"]


def test_what_does_not_read_back_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "3"
    write(target, "a")
    fsync = os.fsync

    def flip_then_fsync(descriptor: int) -> None:  # as a disk that writes other bytes than it was given
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.name == "one.txt":
            path.write_text("c")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", flip_then_fsync)
    with pytest.raises(OSError, match="the note .*/3 cannot be written: it does not read back as it was written: one"):
        write(target, "b")
    assert read(target) == "a"
    assert names(tmp_path) == ["3"]


def test_every_flipped_bit_of_the_manifest_is_damage_and_never_another_format(tmp_path: Path) -> None:
    write(tmp_path / "3", "a")
    original = (tmp_path / "3" / "manifest.json").read_bytes()
    assert set(verified_folder.parse_manifest(original, FORMAT)) == {"one.txt", "sub/two.txt"}
    for bit in range(8 * len(original)):
        flipped = bytearray(original)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamageError) as found:
            verified_folder.parse_manifest(bytes(flipped), FORMAT)
        assert found.value.reason == "manifest", flipped


def test_a_manifest_without_a_hash_of_its_own_is_read(tmp_path: Path) -> None:
    """Earlier builds wrote none."""
    target = tmp_path / "3"
    write(target, "a")
    manifest = json.loads((target / "manifest.json").read_text())
    del manifest["digest"]
    (target / "manifest.json").write_text(json.dumps(manifest) + "\n")
    assert read(target) == "a"
    (target / "manifest.json").write_text(json.dumps(manifest | {"format": 8}) + "\n")
    with pytest.raises(DamageError, match="manifest.json has format 8, but this version reads format 7"):
        read(target)


@pytest.mark.parametrize("killed_at", ["before", "between", "after"])
def test_a_kill_between_the_two_renames_of_a_replacement_loses_nothing(tmp_path: Path, killed_at: str) -> None:
    write(tmp_path / "3", "a")
    write(tmp_path / ".writing-3-0123abcd", "b")
    if killed_at != "before":
        (tmp_path / "3").rename(tmp_path / ".replaced-3")
    if killed_at == "after":
        (tmp_path / ".writing-3-0123abcd").rename(tmp_path / "3")
    verified_folder.sweep(tmp_path)
    assert names(tmp_path) == ["3"]
    assert read(tmp_path / "3") == ("b" if killed_at == "after" else "a")


def test_a_folder_has_lost_its_name_before_the_first_file_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "3", "a")
    rmtree, seen = shutil.rmtree, list[tuple[bool, list[str]]]()

    def delete(folder: Path, **options: Any) -> None:
        seen.append(((tmp_path / "3").exists(), names(folder)))
        rmtree(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", delete)
    verified_folder.remove(tmp_path / "3")
    assert seen == [(False, ["manifest.json", "one.txt", "sub"])]
    assert names(tmp_path) == []


def test_what_cannot_be_deleted_is_swept_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS, where a file that a server still reads cannot go."""
    write(tmp_path / "3", "a")
    (tmp_path / "other").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        verified_folder.remove(tmp_path / "3")
        assert len(names(tmp_path)) == 2
    verified_folder.sweep(tmp_path)
    assert names(tmp_path) == ["other"]
    verified_folder.sweep(tmp_path / "absent")
