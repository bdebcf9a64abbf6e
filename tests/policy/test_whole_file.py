"""A file is as it was or as it should be, whatever fails."""

import errno
import os
from pathlib import Path

import pytest

from policy import whole_file
from tests.failing_disk import FailingDisk


def test_a_file_is_replaced_and_on_disk_before_it_has_its_name(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        disk = FailingDisk(patch)
        whole_file.write(tmp_path / "notes.txt", "a\n")
    assert disk.operations == ["open", "write", "fsync", "rename", "fsync"]
    whole_file.write(tmp_path / "notes.txt", b"b\n")
    assert (tmp_path / "notes.txt").read_bytes() == b"b\n"
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
@pytest.mark.parametrize("number", range(4))
def test_whatever_operation_fails_the_file_is_as_it_was_and_is_named(tmp_path: Path, number: int, code: int) -> None:
    path = tmp_path / "notes.txt"
    whole_file.write(path, "a\n")
    with pytest.MonkeyPatch.context() as patch:
        FailingDisk(patch, fail_at=number, code=code)
        with pytest.raises(OSError, match=f"{path} cannot be written: {os.strerror(code)}") as failed:
            whole_file.write(path, "b\n")
    assert failed.value.errno == code
    assert path.read_text() == "a\n"
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_draft_that_is_not_finished_is_deleted(tmp_path: Path) -> None:
    def interrupt(draft: Path) -> None:
        draft.write_bytes(b"half")
        assert draft.name == whole_file.draft_name("picture.png") == ".picture.png"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), whole_file.replacing(tmp_path / "picture.png") as draft:
        interrupt(draft)
    assert not any(tmp_path.iterdir())
