"""Only plain files are opened: a pipe would block, and a device has no end."""

import os
from pathlib import Path

import pytest

from policy import plain_file


def test_a_file_and_a_link_to_it_are_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with plain_file.opened(tmp_path / name) as file:
            assert file.read() == b"content"


def test_a_pipe_a_folder_and_a_device_are_refused_by_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match="not a plain file") as refused:
            plain_file.opened(path)
        assert refused.value.filename == str(path)
    with pytest.raises(FileNotFoundError):
        plain_file.opened(tmp_path / "absent")
