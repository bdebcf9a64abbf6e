"""Copies of the versions in a bucket are complete and verified, shared by processes, and not more than are needed."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from serving.errors import BucketError, RefusedVersionError, StartupError
from serving.policies import copies as module
from serving.policies.bucket import Bucket
from serving.policies.copies import Copies
from tests.serving.fake_bucket import FakeBucket

Publish = Callable[..., Path]
FOLDER = "run/policies"


@pytest.fixture
def copies(remote: FakeBucket, policies: Path, tmp_path: Path) -> Copies:
    """Of a bucket with the versions 1000 to 1005, of the same files."""
    for version in range(1000, 1006):
        remote.upload(policies / "1000", f"{FOLDER}/{version}")
    return Copies(remote.url("s3", FOLDER), tmp_path / "copies")


def take(copies: Copies, version: int) -> bytes:
    with copies.held(version) as path:
        return (path / "manifest.json").read_bytes()


def names(copies: Copies) -> list[str]:
    return sorted(entry.name for entry in copies.folder.iterdir() if entry.name != ".lock")


def test_a_version_is_copied_once_and_only_when_it_is_needed(
    copies: Copies, remote: FakeBucket, policies: Path
) -> None:
    expected = {path.relative_to(policies / "1000") for path in (policies / "1000").rglob("*")}
    for _ in range(2):
        with copies.held(1002) as path:
            assert path == copies.folder / "1002"
            assert {each.relative_to(path) for each in path.rglob("*")} == expected
    assert names(copies) == ["1002"]
    assert remote.count(f"get {FOLDER}/1002/manifest.json") == 1
    assert remote.count("get") == sum((policies / "1000" / name).is_file() for name in expected)
    remote.is_down = True
    assert take(copies, 1002) == (policies / "1000/manifest.json").read_bytes()


def test_a_version_with_another_hash_is_refused_by_its_address_and_not_kept(
    copies: Copies, remote: FakeBucket, policies: Path
) -> None:
    key = f"{FOLDER}/1001/probes.npz"
    remote.objects[key] = bytes([remote.objects[key][0] ^ 1]) + remote.objects[key][1:]
    with pytest.raises(RefusedVersionError) as error:
        take(copies, 1001)
    assert error.value.reason == "hash"
    assert str(error.value) == (
        f"{copies.url}/1001 is not a usable policy (hash): probes.npz has changed since it was written; upload"
        " it again, or use another version"
    )
    assert names(copies) == []
    remote.objects[key] = (policies / "1000/probes.npz").read_bytes()
    take(copies, 1001)
    assert names(copies) == ["1001"]


def test_a_version_that_another_release_wrote_is_refused(copies: Copies, remote: FakeBucket) -> None:
    remote.objects[f"{FOLDER}/1001/manifest.json"] = b'{"format": 99, "files": {}}\n'
    with pytest.raises(RefusedVersionError, match="format 99, but this version reads format 3") as error:
        take(copies, 1001)
    assert error.value.reason == "manifest"


def test_a_copy_that_is_interrupted_leaves_nothing(copies: Copies, remote: FakeBucket) -> None:
    get = remote.requests.append

    class FailsLater(list[str]):
        def append(self, request: str) -> None:
            remote.is_down = "probes.npz" in request or remote.is_down
            get(request)

    remote.requests = FailsLater()
    with pytest.raises(BucketError, match="cannot read s3://"):
        take(copies, 1000)
    assert names(copies) == []
    remote.requests, remote.is_down = [], False
    take(copies, 1000)


def test_a_full_disk_says_what_to_do(copies: Copies, monkeypatch: pytest.MonkeyPatch) -> None:
    def lack_space(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Bucket, "download", lack_space)
    with pytest.raises(StartupError, match="No space left on device; set XDG_CACHE_HOME to a writable folder"):
        take(copies, 1000)
    assert names(copies) == []


def test_a_disk_that_is_full_is_named_without_the_lock(copies: Copies, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Mock(free=1))
    with pytest.raises(
        StartupError,
        match=r"in a bucket: the copy \S+/1000 cannot be written: \S+ has \d+ bytes, and 1 are free",
    ):
        take(copies, 1000)
    assert names(copies) == []


def test_a_folder_that_cannot_be_made_says_what_to_do(remote: FakeBucket, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    copies = Copies(remote.url("s3", FOLDER), tmp_path / "file" / "copies")
    with pytest.raises(StartupError, match="set XDG_CACHE_HOME to a writable folder"):
        take(copies, 1000)


def test_two_that_need_a_version_at_the_same_time_copy_it_once(copies: Copies, remote: FakeBucket) -> None:
    remote.answers.clear()
    threads = [threading.Thread(target=take, args=(copies, 1000)) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert remote.waits.wait(60)
    remote.answers.set()
    for thread in threads:
        thread.join()
    assert remote.count(f"get {FOLDER}/1000/manifest.json") == 1


def test_a_copy_that_does_not_end_is_not_waited_for_without_end(
    copies: Copies, remote: FakeBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WAIT_S", 0.2)
    remote.answers.clear()
    first = threading.Thread(target=take, args=(copies, 1000))
    first.start()
    assert remote.waits.wait(60)
    with pytest.raises(
        StartupError, match=f"another process has been copying from {copies.url} for 0.2 s; see its log"
    ):
        take(copies, 1000)
    remote.answers.set()
    first.join()
    take(copies, 1000)


def test_the_copies_that_are_needed_and_the_three_that_were_used_last_are_kept(copies: Copies) -> None:
    for used_s, version in enumerate((1003, 1001, 1005, 1000, 1004, 1002)):
        take(copies, version)
        os.utime(copies.folder / str(version), (used_s, used_s))
    copies.keep({1003, 7})
    assert names(copies) == ["1000", "1002", "1003", "1004"]
    take(copies, 1000)
    copies.keep({1001})  # there is no copy of it
    assert names(copies) == ["1000", "1002", "1004"]


def test_what_another_server_has_loaded_is_not_removed(copies: Copies, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SPARE", 0)
    other = Copies(copies.url, copies.folder)
    take(copies, 1000)
    take(copies, 1001)
    other.keep({1000, 1001})
    copies.keep(set())
    assert names(copies) == ["1000", "1001"]
    other.keep({1001})
    assert names(copies) == ["1001"]
    other.keep(set())
    assert names(copies) == []


def test_a_cache_that_cannot_be_read_any_more_is_a_warning_for_a_server_that_serves(
    copies: Copies, caplog: pytest.LogCaptureFixture
) -> None:
    take(copies, 1000)
    (copies.folder / "1000/manifest.json").unlink()
    (copies.folder / "1000/manifest.json").mkdir()
    copies.keep({1000})
    (line,) = caplog.messages
    assert line.startswith(f"cannot read the copies of {copies.url} in {copies.folder}: ")
    assert "Is a directory" in line


def test_a_copy_that_is_read_is_not_removed(copies: Copies) -> None:
    with copies.held(1000) as path:
        copies.discard(1000)
        assert path.is_dir()
    copies.discard(1000)
    assert names(copies) == []
    copies.discard(1000)  # no effect
    assert not copies.has(1000)
    assert copies.versions() == []


@pytest.mark.parametrize("damage", ["flipped", "missing", "foreign", "manifest"])
def test_a_damaged_copy_is_made_again_also_while_another_server_uses_it(
    copies: Copies, policies: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    other = Copies(copies.url, copies.folder)
    with copies.held(1000) as path, other.held(1000):
        seen = path.stat()
        assert not copies.repair(1000, seen)
        probes = path / "probes.npz"
        {
            "flipped": lambda: probes.write_bytes(bytes(probes.stat().st_size)),
            "missing": probes.unlink,
            "foreign": (path / "foreign").touch,
            "manifest": lambda: (path / "manifest.json").write_text("{}\n"),
        }[damage]()
        assert copies.repair(1000, seen)
        assert f"the copy of {copies.url}/1000 is damaged, and is made again: " in caplog.text
        assert take(copies, 1000) == (policies / "1000/manifest.json").read_bytes()
        assert other.repair(1000, seen)  # it is another folder by now, which is not removed
        assert (path / "probes.npz").read_bytes() == (policies / "1000/probes.npz").read_bytes()
    assert names(copies) == ["1000"]


@pytest.mark.parametrize("instead", ["file", "folder for the manifest", "no manifest"])
def test_something_else_in_place_of_a_copy_is_replaced(copies: Copies, policies: Path, instead: str) -> None:
    copies.folder.mkdir(parents=True)
    if instead == "file":
        (copies.folder / "1000").touch()
    elif instead == "no manifest":
        (copies.folder / "1000").mkdir()
    else:
        (copies.folder / "1000/manifest.json").mkdir(parents=True)
    assert take(copies, 1000) == (policies / "1000/manifest.json").read_bytes()
    take(copies, 1001)  # which sweeps
    assert names(copies) == ["1000", "1001"]


def test_a_copy_that_is_removed_while_it_is_needed_is_made_again(copies: Copies) -> None:
    """Readers and a remover take turns in any order; no reader finds a part of a copy."""
    sizes = set[int]()

    def read() -> None:
        for _ in range(10):
            with copies.held(1000) as path:
                sizes.add(sum(each.stat().st_size for each in path.rglob("*") if each.is_file()))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    while any(reader.is_alive() for reader in readers):
        copies.discard(1000)
    assert len(sizes) == 1


def test_what_a_killed_process_left_is_removed_by_the_next_one_that_copies(copies: Copies) -> None:
    program = (
        "from pathlib import Path; from serving.policies.bucket import Bucket;"
        " from serving.policies.copies import Copies; from serving.policy_settings import BucketUrl\n"
        "def download(self, version, folder): (folder / 'part').write_text('x'); print(flush=True); input()\n"
        "Bucket.download = download\n"
        f"with Copies(BucketUrl('s3://bucket'), Path({str(copies.folder)!r})).held(1000): pass"
    )
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ) as process:
        assert process.stdout
        process.stdout.readline()
        (left,) = copies.folder.glob(".writing-1000-*")
        copies.keep(set())
        assert (left / "part").exists()  # it is still being written
        process.send_signal(signal.SIGKILL)
    take(copies, 1001)
    assert names(copies) == ["1001"]


def test_a_version_is_described_by_two_small_files_or_by_its_copy(
    copies: Copies, remote: FakeBucket, publish: Publish, tmp_path: Path
) -> None:
    for version, stay in ((7, 0.25), (8, 0.75)):
        remote.upload(publish(tmp_path / "published", version, stay=stay), f"{FOLDER}/{version}")
    manifest = remote.objects.pop(f"{FOLDER}/1000/manifest.json")  # it is still being uploaded
    assert [copies.stay(version) for version in (7, 8, 1000)] == [0.25, 0.75, -float("inf")]
    assert remote.count("get") == 6
    with copies.described(8) as folder:
        assert sorted(each.name for each in folder.iterdir()) == ["manifest.json", "policy.json"]
    assert not folder.exists()
    remote.objects[f"{FOLDER}/1000/manifest.json"] = manifest
    remote.requests.clear()
    assert [copies.stay(version) for version in (7, 8, 1000)] == [0.25, 0.75, -float("inf")]
    assert remote.count("get") == 2  # of the one that was incomplete
    take(copies, 7)
    remote.is_down = True
    assert Copies(copies.url, copies.folder).stay(7) == 0.25
