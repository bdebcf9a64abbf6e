"""The files of sampled rows: what they hold, their names, and the limit of their folder."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.errors import StartupError
from serving.telemetry import row_files
from serving.telemetry.row_files import AnsweredRows, RowFolder, check_folder

MIB = 2**20
NOBODY = 2**22 + 1  # above the largest process number of Linux


def answered(count: int, *, value: float = 0, robot_id: str = "", **fields: Any) -> AnsweredRows:
    """`count` rows with 2 values of state, 1 of goal, and chunks of 3 actions of 2 values: 36 bytes each."""
    state = np.full((count, 2), value, np.float32)
    rows = AnsweredRows("maze", "7", state, state[:, :1] + 1, np.zeros((count, 3, 2), np.float32), robot_id, 12.5)
    return rows._replace(**fields)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.npz"))


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_a_file_has_the_rows_of_several_requests_in_their_order(tmp_path: Path) -> None:
    action = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    requests = [answered(2, value=0.5, robot_id="Zo\u00eb", action=action), answered(1, value=-2, time_s=13.25)]
    RowFolder(tmp_path, max_bytes=MIB, wall_clock_ns=lambda: 1_700_000_000_123_456_789).write(requests)
    (path,) = tmp_path.iterdir()
    assert path.name == f"rows-1700000000123456789-{os.getpid()}-000001.npz"
    with np.load(path, allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays}
    assert {name: (each.dtype.kind, each.dtype.itemsize, each.shape) for name, each in found.items()} == {
        "schema": ("i", 8, ()),
        "policy": ("U", 16, ()),
        "version": ("U", 4, ()),
        "state": ("f", 4, (3, 2)),
        "goal": ("f", 4, (3, 1)),
        "action": ("f", 4, (3, 3, 2)),
        "robot_id": ("U", 12, (3,)),
        "time_s": ("f", 8, (3,)),
    }
    assert (int(found["schema"]), str(found["policy"]), str(found["version"])) == (1, "maze", "7")
    assert found["state"].tolist() == [[0.5, 0.5], [0.5, 0.5], [-2, -2]]
    assert found["goal"].tolist() == [[1.5], [1.5], [-1]]
    assert found["action"][:2].tolist() == action.tolist()
    assert found["robot_id"].tolist() == ["Zo\u00eb", "Zo\u00eb", ""]
    assert found["time_s"].tolist() == [12.5, 12.5, 13.25]


def test_the_oldest_files_make_room_for_new_ones(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not ours")
    folder = RowFolder(tmp_path, max_bytes=MIB)
    for number in range(40):
        folder.write([answered(1000, value=number)])  # 1,000 * (36 + 4 + 8) bytes and headers, about 50 kB
        assert size(tmp_path) <= MIB
    kept = [np.load(path)["state"][0, 0] for path in files(tmp_path)]
    assert kept == list(range(40 - len(kept), 40))
    # 1 MiB less twice the largest file (1/8 MiB and 4 KiB of headers) is 778,240 bytes
    assert len(kept) == 778_240 // files(tmp_path)[0].stat().st_size
    assert (tmp_path / "notes.txt").exists()


def test_a_folder_with_the_name_of_an_old_file_is_left_alone(tmp_path: Path) -> None:
    oldest = tmp_path / f"rows-{1:019d}-1-{1:06d}.npz"
    oldest.mkdir()
    folder = RowFolder(tmp_path, max_bytes=MIB)
    for number in range(40):
        folder.write([answered(1000, value=number)])
    assert oldest.is_dir()
    assert sum(path.stat().st_size for path in files(tmp_path) if path.is_file()) <= MIB


def test_several_processes_share_the_limit(tmp_path: Path) -> None:
    folders = [RowFolder(tmp_path, max_bytes=2 * MIB, writers=2) for _ in range(2)]
    for number in range(80):
        folders[number % 2].write([answered(1000)])
        assert size(tmp_path) <= 2 * MIB
    assert size(tmp_path) > MIB


def test_the_number_of_files_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_files, "_MAX_FILES", 3)
    folder = RowFolder(tmp_path, max_bytes=100 * MIB)
    for number in range(5):
        folder.write([answered(1, value=number)])
    assert [np.load(path)["state"][0, 0] for path in files(tmp_path)] == [2, 3, 4]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RowFolder(tmp_path, max_bytes=MIB)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="No space left"):
        folder.write([answered(1)])
    assert list(tmp_path.iterdir()) == []


def test_incomplete_files_of_processes_that_ended_are_swept(tmp_path: Path) -> None:
    def name(pid: int, ending: str) -> str:
        return f"rows-{5:019d}-{pid}-{1:06d}.npz{ending}"

    swept = [name(NOBODY, ".tmp"), name(os.getpid(), ".tmp")]  # in a container, each process has the same number
    kept = [name(NOBODY, ""), name(os.getppid(), ".tmp"), name(10**20, ".tmp"), "mine.npz.tmp"]
    for each in swept + kept:
        (tmp_path / each).touch()
    RowFolder(tmp_path, max_bytes=MIB)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_a_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    check_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a").rglob("*")) == [tmp_path / "a" / "b"]


@pytest.mark.parametrize(("folder", "why"), [("file", "File exists"), ("file/rows", "Not a directory")])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, folder: str, why: str) -> None:
    (tmp_path / "file").touch()
    message = f"cannot write sampled rows to {tmp_path / folder} ({why}); choose a folder that this user may write to"
    with pytest.raises(StartupError, match=re.escape(message)):
        RowFolder(tmp_path / folder, max_bytes=MIB)
