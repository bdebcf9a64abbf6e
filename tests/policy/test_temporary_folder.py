"""A temporary folder is made and removed, and swept if its process was killed."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from policy.temporary_folder import temporary_folder

PREFIX = "kilolayer-notes-"
HOLD = f"""
from policy.temporary_folder import temporary_folder
with temporary_folder({PREFIX!r}) as folder:
    print(folder, flush=True)
    input()
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_is_removed_at_its_end_with_what_it_holds(root: Path) -> None:
    with temporary_folder(PREFIX) as folder:
        assert folder.parent == root
        (folder / "counter_7.db").write_text("x")
    assert list(root.iterdir()) == []


def test_only_what_a_dead_process_left_is_swept(root: Path) -> None:
    environ = os.environ | {"TMPDIR": str(root), "PYTHONPATH": os.pathsep.join(sys.path)}
    pipe, command = subprocess.PIPE, [sys.executable, "-c", HOLD]
    with (
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environ) as alive,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environ) as dead,
    ):
        assert alive.stdout
        assert dead.stdout
        kept, left = Path(alive.stdout.readline().strip()), Path(dead.stdout.readline().strip())
        (left / "counter_7.db").write_text("x")
        dead.send_signal(signal.SIGKILL)
        dead.wait()
        foreign = root / "kilolayer-serve-1"
        foreign.mkdir()
        (root / "kilolayer-notes-link").symlink_to(foreign)
        (root / "kilolayer-notes-file").write_text("x")
        with temporary_folder(PREFIX) as own:
            assert set(root.iterdir()) == {
                kept,
                foreign,
                own,
                root / "kilolayer-notes-link",
                root / "kilolayer-notes-file",
            }
        alive.communicate("\n")
    assert not kept.exists()


def test_a_folder_of_another_user_is_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = root / "kilolayer-notes-x"
    left.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: left.stat().st_uid + 1)
    with temporary_folder(PREFIX):
        assert left.exists()


def test_a_folder_that_is_swept_before_it_is_locked_is_made_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, swept = tempfile.mkdtemp, list[Path]()

    def make_and_sweep(**options: object) -> str:
        folder = make(**options)  # pyright: ignore[reportCallIssue, reportArgumentType]
        if not swept:
            swept.append(Path(folder))
            swept[0].rmdir()
        return folder

    monkeypatch.setattr(tempfile, "mkdtemp", make_and_sweep)
    with temporary_folder(PREFIX) as folder:
        assert folder.is_dir()
        assert swept != [folder]


def test_without_room_there_is_an_error_of_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError), temporary_folder(PREFIX):
        pass
