"""Copies of the versions in a bucket are complete and verified, shared by processes, and not more than are needed."""

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from policy import verified_folder
from policy.published import metric
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
    return Copies(Bucket(remote.url("s3", FOLDER)), tmp_path / "copies")


def take(copies: Copies, version: int) -> bytes:
    with copies.held(version) as path:
        return (path / "manifest.json").read_bytes()


def names(copies: Copies) -> list[str]:
    return sorted(entry.name for entry in copies.folder.iterdir() if not entry.name.startswith(".lock-"))


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
        f"{copies.bucket.url}/1001 is not a usable policy (hash): probes.npz has changed since it was written; upload"
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


def test_a_folder_that_cannot_be_made_says_what_to_do(remote: FakeBucket, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    copies = Copies(Bucket(remote.url("s3", FOLDER)), tmp_path / "file" / "copies")
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
    with pytest.raises(StartupError, match="another process has been copying s3://.*/1000 for 0.2 s; see its log"):
        take(copies, 1000)
    remote.answers.set()
    first.join()
    take(copies, 1000)


def test_the_copies_that_are_needed_and_three_others_are_kept(copies: Copies) -> None:
    for version in (1003, 1001, 1005, 1000, 1004, 1002):
        take(copies, version)
        os.utime(copies.folder / str(version), (version, version))
        os.utime(copies.folder / f".lock-{version}", (version, version))
    copies.sweep({1000, 7})
    assert names(copies) == ["1000", "1003", "1004", "1005"]
    assert sorted(path.name for path in copies.folder.glob(".*")) == [
        f".lock-{each}" for each in (1000, 1003, 1004, 1005)
    ]
    take(copies, 1000)
    copies.sweep(())
    assert names(copies) == ["1000", "1004", "1005"]


def test_a_copy_that_is_read_is_not_removed(copies: Copies, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SPARE", 0)
    with copies.held(1000) as path:
        copies.discard(1000)
        copies.sweep(())
        assert path.is_dir()
    copies.discard(1000)
    assert list(copies.folder.iterdir()) == []
    copies.discard(1000)  # no effect


def test_what_a_killed_process_left_is_removed(copies: Copies, monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import sys; from pathlib import Path; from serving.policies.bucket import Bucket;"
        " from serving.policies.copies import Copies; from serving.policy_settings import BucketUrl\n"
        "def download(self, version, folder): (folder / 'part').write_text('x'); print(flush=True); input()\n"
        "Bucket.download = download\n"
        f"with Copies(Bucket(BucketUrl('s3://bucket')), Path({str(copies.folder)!r})).held(1000): pass"
    )
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ) as process:
        assert process.stdout
        process.stdout.readline()
        monkeypatch.setattr(module, "_SPARE", 0)
        copies.sweep(())
        (left,) = copies.folder.glob(".writing-1000-*")  # it is still being written
        process.send_signal(signal.SIGKILL)
    assert (left / "part").exists()
    copies.sweep(())
    assert not left.exists()
    take(copies, 1000)


def test_versions_are_described_by_two_small_files(
    copies: Copies, remote: FakeBucket, publish: Publish, tmp_path: Path
) -> None:
    for version, stay in ((7, 0.25), (8, 0.75)):
        remote.upload(publish(tmp_path / "published", version, stay=stay), f"{FOLDER}/{version}")
    remote.objects.pop(f"{FOLDER}/1000/manifest.json")  # incomplete
    described = copies.describe([7, 8, 1000])
    assert [metric(folder, "eval/stay") for folder in described.values()] == [0.25, 0.75, -float("inf")]
    assert remote.count("get") == 6
    remote.requests.clear()
    copies.describe([8, 1000])
    assert remote.count("get") == 2  # of the incomplete one
    assert sorted(entry.name for entry in (copies.folder / "descriptions").iterdir()) == ["8"]
    assert verified_folder.MANIFEST in {path.name for path in described[8].iterdir()}
