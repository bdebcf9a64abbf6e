"""A bucket is listed and read, with its faults, by the protocols of both clouds."""

import errno
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from policy.verified_folder import DamageError
from serving.errors import BucketError
from serving.policies import bucket as bucket_module
from serving.policies import version_files
from serving.policies.bucket import Bucket
from tests.serving.fake_bucket import FakeBucket

FOLDER = "run=1/policies"
MANIFEST_OF = '{"format": 3, "files": {"%s": {"size": 1, "sha256": ""}}}\n'
SCHEMES = pytest.mark.parametrize("scheme", ["s3", "gs"])


@SCHEMES
def test_versions_are_folders_with_a_number_as_name(remote: FakeBucket, scheme: str) -> None:
    for key in ("90/a", "100/a", "100/b/c", "007/a", "latest/a", "5", "1000", ".writing-3/a", "7.5/a"):
        remote.objects[f"{FOLDER}/{key}"] = b"x"
    remote.objects["other/11/a"] = b"x"
    assert Bucket(remote.url(scheme, FOLDER)).versions() == [90, 100]
    assert Bucket(remote.url(scheme, "nowhere")).versions() == []
    assert Bucket(remote.url(scheme, "run=1")).versions() == []


@SCHEMES
def test_the_files_of_a_version_have_their_size_and_a_tag_of_their_content(remote: FakeBucket, scheme: str) -> None:
    bucket = Bucket(remote.url(scheme, FOLDER))
    for name, content in (("policy.json", b"{}"), ("params/d/a", b"123"), ("params/d/b", b""), ("probes.npz", b"1")):
        remote.objects[f"{FOLDER}/20/{name}"] = content
    remote.objects[f"{FOLDER}/200/manifest.json"] = b"{}"  # of another version
    before = bucket.files(20)
    assert {(name, size) for name, _, size, _ in before} == {
        ("policy.json", 2),
        ("params/d/a", 3),
        ("params/d/b", 0),
        ("probes.npz", 1),
    }
    assert {changed for *_, changed in before} == {1_767_225_600_000_000_000}  # 2026-01-01 in ns
    assert not version_files.is_complete(before)
    remote.objects[f"{FOLDER}/20/params/d/a"] = b"321"  # of the same size
    assert bucket.files(20) != before
    remote.objects[f"{FOLDER}/20/manifest.json"] = b"{}"
    assert version_files.is_complete(bucket.files(20))
    assert bucket.files(3) == frozenset()


@SCHEMES
def test_a_version_is_downloaded_with_the_files_that_its_manifest_names(
    remote: FakeBucket, scheme: str, policies: Path, tmp_path: Path
) -> None:
    remote.upload(policies / "1000", f"{FOLDER}/1000")
    remote.objects[f"{FOLDER}/1000/foreign"] = b"x"
    Bucket(remote.url(scheme, FOLDER)).download(1000, tmp_path)
    expected = {path.relative_to(policies / "1000") for path in (policies / "1000").rglob("*")}
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*")} == expected
    for name in expected:
        if (tmp_path / name).is_file():
            assert (tmp_path / name).read_bytes() == (policies / "1000" / name).read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "damage"),
    [
        ("manifest.json", None, "manifest: .*manifest.json is missing"),
        ("manifest.json", b"{}\n", "manifest: .*manifest.json cannot be parsed"),
        ("manifest.json", b" " * (2**20 + 1), "files: .*manifest.json has 1048577 bytes, more than 1048576"),
        ("manifest.json", b'{"format": 3, "files": {"a": {"size": 1, "sha256": ""}}}\n', "files: .*a does not belong"),
        ("manifest.json", b'{"format": 3, "files": {"params/../../a": {"size": 1, "sha256": ""}}}\n', "files: .*below"),
        ("manifest.json", MANIFEST_OF % ("params/" + "x" * 256), "files: .*is not the name of a file below it"),
        ("manifest.json", MANIFEST_OF % "/params/x", "files: .*is not the name of a file below it"),
        ("manifest.json", MANIFEST_OF % "params/\\u0000", "files: .*is not the name of a file below it"),
        ("manifest.json", MANIFEST_OF % "params/\\ud800", "files: .*is not the name of a file below it"),
        ("manifest.json", MANIFEST_OF % "params//x", "files: .*is not the name of a file below it"),
        ("probes.npz", None, "files: .*probes.npz is missing"),
        ("probes.npz", b"longer or shorter", "hash: .*probes.npz has 17 bytes instead of "),
    ],
)
def test_a_version_that_is_not_as_its_manifest_says_is_not_downloaded(
    remote: FakeBucket, policies: Path, tmp_path: Path, *, name: str, content: bytes | str | None, damage: str
) -> None:
    remote.upload(policies / "1000", f"{FOLDER}/1000")
    remote.objects.pop(f"{FOLDER}/1000/{name}")
    if content is not None:
        remote.objects[f"{FOLDER}/1000/{name}"] = content.encode() if isinstance(content, str) else content
    with pytest.raises(DamageError) as error:
        Bucket(remote.url("s3", FOLDER)).download(1000, tmp_path / "inside")
    assert re.match(damage, f"{error.value.reason}: {error.value}")
    assert not (tmp_path / "a").exists()


@SCHEMES
def test_objects_that_mark_folders_are_no_versions_and_hide_none(remote: FakeBucket, scheme: str) -> None:
    for name in ("", "7/", "7/params/", "7/manifest.json", "8/"):
        remote.objects[f"{FOLDER}/{name}"] = b""
    bucket = Bucket(remote.url(scheme, FOLDER))
    assert bucket.versions() == [7, 8]
    assert version_files.is_complete(bucket.files(7))
    assert not version_files.is_complete(bucket.files(8))


@pytest.mark.parametrize("name", ["..", "params/../x", "params//x", "a\nb", "\x1b[31m"])
def test_an_object_with_a_name_that_cannot_be_listed_does_not_hide_its_version(
    remote: FakeBucket, policies: Path, tmp_path: Path, name: str
) -> None:
    remote.upload(policies / "1000", f"{FOLDER}/1000")
    bucket = Bucket(remote.url("s3", FOLDER))
    remote.objects[f"{FOLDER}/1000/{name}"] = b"x"
    assert [name for name, *_ in bucket.files(1000)] == ["manifest.json"]
    bucket.download(1000, tmp_path)
    assert not (tmp_path / name).is_file()
    remote.objects.pop(f"{FOLDER}/1000/manifest.json")
    assert bucket.files(1000) == frozenset()


def test_a_folder_with_such_a_name_is_named(remote: FakeBucket) -> None:
    for folder in ("7", "..", "a\n"):
        remote.objects[f"{FOLDER}/{folder}/manifest.json"] = b"{}\n"
    with pytest.raises(BucketError) as error:
        Bucket(remote.url("s3", FOLDER)).versions()
    assert re.fullmatch(rf"cannot read s3://\S+ \(.*{FOLDER}/\.\./.*\); remove this object", str(error.value))
    remote.objects.pop(f"{FOLDER}/../manifest.json")
    with pytest.raises(BucketError, match=r"a\\n"):
        Bucket(remote.url("s3", FOLDER)).versions()


def test_very_many_objects_are_listed_up_to_a_bound(remote: FakeBucket, policies: Path, tmp_path: Path) -> None:
    """Foreign ones; a version with them counts as complete, and those that its manifest names are read."""
    remote.page = 1000
    remote.upload(policies / "1000", f"{FOLDER}/1000")
    remote.objects |= {f"{FOLDER}/1000/a{number:05}": b"" for number in range(10_001)}
    bucket = Bucket(remote.url("s3", FOLDER))
    files = bucket.files(1000)
    assert (len(files), version_files.is_complete(files)) == (10_000, True)
    assert remote.count("list") == 10
    bucket.download(1000, tmp_path)
    remote.objects |= {f"{FOLDER}/{version}/a": b"" for version in range(10_000)}
    assert bucket.versions() == list(range(10_000))


@pytest.mark.parametrize("name", ["manifest.json", "probes.npz"])
def test_a_file_that_is_listed_and_not_found_is_a_fault_of_the_bucket(
    remote: FakeBucket, policies: Path, tmp_path: Path, name: str
) -> None:
    """As from a proxy that fails. The version would otherwise count as refused until its files change."""
    remote.upload(policies / "1000", f"{FOLDER}/1000")
    remote.statuses[f"get {FOLDER}/1000/{name}"] = 404
    with pytest.raises(BucketError, match=rf"\(1000/{name} is listed, and was not found\); check the address"):
        Bucket(remote.url("s3", FOLDER)).download(1000, tmp_path)


@pytest.mark.parametrize(
    ("status", "requests"), [(301, 1), (400, 1), (401, 1), (403, 1), (412, 1), (429, 5), (500, 5), (502, 5), (504, 5)]
)
def test_a_file_that_is_not_given_is_a_fault_of_the_bucket(
    remote: FakeBucket, policies: Path, tmp_path: Path, status: int, requests: int
) -> None:
    remote.upload(policies / "1000", f"{FOLDER}/1000")
    key = f"get {FOLDER}/1000/probes.npz"
    remote.statuses[key] = status
    with pytest.raises(BucketError, match="probes.npz"):
        Bucket(remote.url("s3", FOLDER)).download(1000, tmp_path)
    assert remote.count(key) == requests


def test_an_answer_that_always_ends_in_the_middle_is_given_up(
    remote: FakeBucket, policies: Path, tmp_path: Path
) -> None:
    remote.upload(policies / "1000", f"{FOLDER}/1000")
    key = f"{FOLDER}/1000/probes.npz"
    remote.before = lambda _: remote.cut.add(key)
    with pytest.raises(BucketError, match="cannot read s3://"):
        Bucket(remote.url("s3", FOLDER)).download(1000, tmp_path)
    assert remote.count(f"get {key}") == 5


def test_a_file_that_is_replaced_between_two_parts_of_it_is_not_put_together(
    remote: FakeBucket, policies: Path, tmp_path: Path
) -> None:
    remote.upload(policies / "1000", f"{FOLDER}/1000")
    key = f"{FOLDER}/1000/probes.npz"
    remote.cut.add(key)

    def replace(request: str) -> None:
        if remote.count(f"get {key}") == 2:
            remote.objects[key] = bytes(len(remote.objects[key]))

    remote.before = replace
    with pytest.raises(BucketError, match="cannot read s3://"):
        Bucket(remote.url("s3", FOLDER)).download(1000, tmp_path)
    assert remote.count(f"get {key}") == 2


def test_a_file_for_which_there_is_no_space_is_not_begun(
    remote: FakeBucket, policies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote.upload(policies / "1000", f"{FOLDER}/1000")
    size = (policies / "1000/probes.npz").stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Mock(free=size - 1))
    with pytest.raises(OSError, match=rf"has \d+ bytes, and {size - 1} are free") as error:
        Bucket(remote.url("s3", FOLDER)).download(1000, tmp_path)
    assert error.value.errno == errno.ENOSPC
    assert all(path.stat().st_size < size for path in tmp_path.rglob("*") if path.is_file())


def test_credentials_that_were_replaced_are_read_at_the_next_attempt(
    remote: FakeBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = Bucket(remote.url("s3", FOLDER))
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "expired")
        with pytest.raises(BucketError, match="403"):
            bucket.versions()
    assert bucket.versions() == []


def test_requests_that_fail_are_repeated(remote: FakeBucket, policies: Path, tmp_path: Path) -> None:
    remote.upload(policies / "1000", f"{FOLDER}/1000")
    bucket = Bucket(remote.url("s3", FOLDER))
    remote.fail_next = 2
    assert bucket.versions() == [1000]
    assert remote.count("list") == 3
    remote.cut.add(f"{FOLDER}/1000/policy.json")
    bucket.download(1000, tmp_path)
    assert (tmp_path / "policy.json").read_bytes() == (policies / "1000/policy.json").read_bytes()
    assert remote.count(f"get {FOLDER}/1000/policy.json") == 2


def go_down(remote: FakeBucket, _: pytest.MonkeyPatch) -> None:
    remote.is_down = True


def fail(remote: FakeBucket, _: pytest.MonkeyPatch) -> None:
    remote.fail_next = 100


def rename(remote: FakeBucket, _: pytest.MonkeyPatch) -> None:
    remote.name = "another"


def lose_the_key(_: FakeBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "unknown")


@pytest.mark.parametrize(
    ("fault", "reason"), [(go_down, "error sending request"), (fail, "503"), (rename, "404"), (lose_the_key, "403")]
)
def test_a_bucket_that_cannot_be_read_is_one_line(
    remote: FakeBucket, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., None], reason: str
) -> None:
    bucket = Bucket(remote.url("s3", FOLDER))
    fault(remote, monkeypatch)
    with pytest.raises(BucketError) as error:
        bucket.versions()
    message = str(error.value)
    assert message.startswith(f"cannot read {bucket.url} (")
    assert message.endswith("; check the address, the credentials and the network")
    assert reason in message
    assert "\n" not in message
    assert len(message) < 500


def test_a_bucket_that_does_not_answer_is_given_up(remote: FakeBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bucket_module.CLIENT, "read_timeout", "100ms")
    monkeypatch.setitem(bucket_module.RETRY, "max_retries", 1)
    remote.answers.clear()
    with pytest.raises(BucketError):
        Bucket(remote.url("s3", FOLDER)).versions()
    assert remote.count("list") == 2
