"""Snapshots: what is saved comes back or is refused, and the newest intact one is found."""

import errno
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from policy import verified_folder
from tests.failing_disk import FailingDisk
from tests.odd_names import ODD_NAMES
from training.run_dir import checkpoint
from training.run_dir.checkpoint import SnapshotError

REPOSITORY = Path(__file__).parents[2]


def state_of(number: int) -> dict[str, Any]:
    """A state with every kind of leaf; its values differ from those of every other number."""
    return {
        "key": jax.random.key(number),
        "count": jnp.int32(number),
        "flags": jnp.array([True, number % 2 == 0]),
        "nested": (jnp.full((3, 2), number + 0.5), jnp.zeros((0, 4)), jnp.array([jnp.nan, jnp.inf, -0.0])),
        "large": jnp.arange(1_000, dtype=jnp.float32).reshape(250, 4) + number,
    }


def require_equal(one: Any, other: Any) -> None:
    """Compare two states bit for bit."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        is_key = jnp.issubdtype(left.dtype, jax.dtypes.prng_key)
        ours, theirs = (np.asarray(jax.random.key_data(leaf) if is_key else leaf) for leaf in (left, right))
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        assert ours.tobytes() == theirs.tobytes()


@pytest.fixture
def snapshots(tmp_path: Path) -> Path:
    """Snapshots of the iterations 4 and 5; that of 3 was deleted."""
    for iteration in (3, 4, 5):
        checkpoint.save(tmp_path / "snapshots", iteration, state=state_of(iteration))
    assert sorted(path.name for path in (tmp_path / "snapshots").iterdir()) == ["4", "5"]
    return tmp_path / "snapshots"


def test_a_snapshot_comes_back_bit_for_bit(snapshots: Path) -> None:
    require_equal(checkpoint.restore_latest(snapshots, like=state_of(0)), state_of(5))
    checkpoint.save(snapshots, 5, state=state_of(50))  # a later one of the same iteration
    require_equal(checkpoint.restore_latest(snapshots, like=state_of(0)), state_of(50))
    assert sorted(path.name for path in snapshots.iterdir()) == ["4", "5"]


@pytest.mark.parametrize("part_bytes", [16, 48, 1_000, 4_000, 100_000])
def test_large_arrays_are_read_in_parts_into_the_memory_that_is_there(
    snapshots: Path, monkeypatch: pytest.MonkeyPatch, part_bytes: int
) -> None:
    """A row has 16 bytes; with parts of 48 the last one is a single row."""
    monkeypatch.setattr(checkpoint, "_SMALL_BYTES", 100)
    monkeypatch.setattr(checkpoint, "RESTORED_BYTES", 2 * part_bytes)
    like = state_of(0)
    pointer = like["large"].unsafe_buffer_pointer()
    restored = checkpoint.restore_latest(snapshots, like=like)
    require_equal(restored, state_of(5))
    assert like["large"].is_deleted()
    assert restored["large"].unsafe_buffer_pointer() == pointer
    assert not like["nested"][0].is_deleted()


def test_after_any_flipped_bit_the_one_before_is_restored(snapshots: Path) -> None:
    generator = random.Random(0)
    newest = snapshots / "5"
    for file in ("state.npz", "manifest.json"):
        original = (newest / file).read_bytes()
        for position in (0, len(original) - 1, *(generator.randrange(len(original)) for _ in range(24))):
            flipped = bytearray(original)
            flipped[position] ^= 1 << generator.randrange(8)
            (newest / file).write_bytes(flipped)
            said: list[str] = []
            require_equal(checkpoint.restore_latest(snapshots, like=state_of(0), say=said.append), state_of(4))
            (line,) = said
            assert f"the snapshot {newest} is damaged (" in line
            assert line.endswith("); it is now 5.damaged")
            assert (snapshots / "5.damaged" / file).read_bytes() == flipped
            (snapshots / "5.damaged").rename(newest)
            (newest / file).write_bytes(original)
    require_equal(checkpoint.restore_latest(snapshots, like=state_of(0)), state_of(5))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: os.truncate(path / "state.npz", 3_000), "state.npz has 3000 bytes instead of "),
        (lambda path: os.truncate(path / "manifest.json", 30), "manifest.json is truncated"),
        (lambda path: (path / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda path: (path / "state.npz").unlink(), "state.npz is missing"),
        (lambda path: (path / "more").write_text(""), "more does not belong to it"),
    ],
)
def test_a_cut_snapshot_is_passed_over_and_set_aside(snapshots: Path, damage: Any, reason: str) -> None:
    damage(snapshots / "5")
    (snapshots / "5.damaged").mkdir()  # of an earlier time
    said: list[str] = []
    require_equal(checkpoint.restore_latest(snapshots, like=state_of(0), say=said.append), state_of(4))
    assert f"5 is damaged ({reason}" in said[0]
    assert said[0].endswith("; it is now 5.damaged-1")
    assert checkpoint.latest(snapshots) == 4


def test_without_an_intact_snapshot_all_are_named_and_left_alone(snapshots: Path) -> None:
    (snapshots / "4" / "state.npz").unlink()
    os.truncate(snapshots / "5" / "state.npz", 10)
    with pytest.raises(SnapshotError, match=r"5 is damaged \(state.npz has 10 bytes .*; 4 is damaged \(state.npz is m"):
        checkpoint.restore_latest(snapshots, like=state_of(0))
    assert sorted(path.name for path in snapshots.iterdir()) == ["4", "5"]
    with pytest.raises(SnapshotError, match="there is no intact snapshot in .*/none to resume from; copy one from a"):
        checkpoint.restore_latest(snapshots / "none", like=state_of(0))


@pytest.mark.parametrize("digit", ["0", "3", "6"])  # a bit away from 2
def test_a_flipped_bit_in_the_format_is_damage(snapshots: Path, digit: str) -> None:
    manifest = snapshots / "5" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 2', f'"format": {digit}'))
    said: list[str] = []
    require_equal(checkpoint.restore_latest(snapshots, like=state_of(0), say=said.append), state_of(4))
    assert "5 is damaged (manifest.json has changed since it was written); it is now 5.damaged" in said[0]


def test_a_snapshot_of_a_later_format_is_not_taken_for_a_damaged_one(snapshots: Path) -> None:
    (snapshots / "5" / "manifest.json").unlink()
    verified_folder.write_manifest(snapshots / "5", 3)
    with pytest.raises(SnapshotError, match="5 cannot be read: manifest.json has format 3, but this version reads"):
        checkpoint.restore_latest(snapshots, like=state_of(0))
    assert checkpoint.latest(snapshots) == 5


def test_a_snapshot_of_the_first_format_is_refused_by_name(tmp_path: Path) -> None:
    """It was an Orbax checkpoint without a manifest, which is no damage."""
    (tmp_path / "5").mkdir()
    (tmp_path / "5" / "_CHECKPOINT_METADATA").write_text("{}")
    with pytest.raises(SnapshotError, match=r"5 has format 1, and this version reads format 2; .*--init-from"):
        checkpoint.restore_latest(tmp_path, like=state_of(0))
    assert checkpoint.latest(tmp_path) == 5


def test_an_unreadable_sector_is_damage_and_a_missing_permission_is_not(
    snapshots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify = verified_folder.verify

    def failing(code: int) -> Any:
        def fail(folder: Path, **options: Any) -> str:
            if folder.name == "5":
                raise OSError(code, os.strerror(code), str(folder / "state.npz"))
            return verify(folder, **options)

        return fail

    monkeypatch.setattr(verified_folder, "verify", failing(errno.EACCES))
    with pytest.raises(PermissionError):
        checkpoint.restore_latest(snapshots, like=state_of(0))
    assert checkpoint.latest(snapshots) == 5
    monkeypatch.setattr(verified_folder, "verify", failing(errno.EIO))
    require_equal(checkpoint.restore_latest(snapshots, like=state_of(0)), state_of(4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"large": jnp.zeros((250, 3))}, r"\['large'\] is \(250, 4\) float32, expected \(250, 3\) float32"),
        ({"count": jnp.float32(0)}, r"\['count'\] is \(\) int32, expected \(\) float32"),
        ({"more": jnp.float32(0)}, r"\['more'\] is absent, expected \(\) float32"),
    ],
)
def test_a_snapshot_of_another_run_is_refused_and_left_alone(snapshots: Path, change: Any, message: str) -> None:
    like = state_of(0) | change
    with pytest.raises(SnapshotError, match=f"5 does not fit this run: {message}"):
        checkpoint.restore_latest(snapshots, like=like)
    assert checkpoint.latest(snapshots) == 5


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_whatever_operation_fails_earlier_snapshots_stay(snapshots: Path, code: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        disk = FailingDisk(patch)
        checkpoint.save(snapshots, 5, state=state_of(5))
    assert set(disk.operations) == {"mkdir", "open", "write", "fsync", "rename"}
    made = disk.operations.count("mkdir") - 1  # the first ones make the parent, which is there
    for number, operation in enumerate(disk.operations[made:-2], start=made):  # the last two come after the rename
        with pytest.MonkeyPatch.context() as patch:
            FailingDisk(patch, fail_at=number, code=code)
            message = f"the snapshot {snapshots / '5'} cannot be written: {os.strerror(code)}"
            with pytest.raises(OSError, match=message) as failed:
                checkpoint.save(snapshots, 5, state=state_of(6))
        assert failed.value.errno == code, operation
        assert sorted(path.name for path in snapshots.iterdir()) == ["4", "5"], operation
        require_equal(checkpoint.restore_latest(snapshots, like=state_of(0)), state_of(5))


def test_leftovers_of_killed_processes_are_swept_and_kept_ones_brought_back(snapshots: Path) -> None:
    shutil.copytree(snapshots / "5", snapshots / ".writing-6-0123abcd")
    shutil.copytree(snapshots / "5", snapshots / ".deleting-3-0123abcd")
    (snapshots / "5").rename(snapshots / ".replaced-5")  # killed between the two renames of a replacement
    assert checkpoint.latest(snapshots) == 4
    assert checkpoint.any_saved(snapshots)
    assert sorted(path.name for path in snapshots.iterdir()) == ["4", "5"]
    require_equal(checkpoint.restore_latest(snapshots, like=state_of(0)), state_of(5))


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_a_snapshot_in_a_folder_with_an_odd_name_comes_back(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name / "snapshots"
    checkpoint.save(folder, 1, state=state_of(1))
    require_equal(checkpoint.restore_latest(folder, like=state_of(0)), state_of(1))


LIMITED = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from tests.odd_names import ODD_NAMES
from training.run_dir import checkpoint
folder = Path(sys.argv[1])
checkpoint.save(folder, 1, state={"array": np.zeros(10)})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))
try:
    checkpoint.save(folder, 2, state={"array": np.zeros(10_000)})
except OSError as error:
    print("refused:", error)
print("left:", [path.name for path in folder.iterdir()])
"""


def test_a_file_that_the_system_refuses_to_write_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    """A limit on the size of a file stands in for a full disk: the system call fails."""
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=REPOSITORY).stdout
    assert f"refused: [Errno 27] the snapshot {tmp_path}/2 cannot be written: File too large" in output
    assert "left: ['1']" in output
