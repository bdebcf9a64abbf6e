"""A bucket is listed and read, with its faults, by the protocols of both clouds."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from policy.verified_folder import DamageError
from serving.errors import BucketError
from serving.policies import bucket as bucket_module
from serving.policies import version_files
from serving.policies.bucket import Bucket
from tests.serving.fake_bucket import FakeBucket

FOLDER = "run=1/policies"
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
        ("probes.npz", None, "files: .*probes.npz is missing"),
        ("probes.npz", b"longer or shorter", "hash: .*probes.npz has 17 bytes instead of "),
    ],
)
def test_a_version_that_is_not_as_its_manifest_says_is_not_downloaded(
    remote: FakeBucket, policies: Path, tmp_path: Path, *, name: str, content: bytes | None, damage: str
) -> None:
    remote.upload(policies / "1000", f"{FOLDER}/1000")
    remote.objects.pop(f"{FOLDER}/1000/{name}")
    if content is not None:
        remote.objects[f"{FOLDER}/1000/{name}"] = content
    with pytest.raises(DamageError) as error:
        Bucket(remote.url("s3", FOLDER)).download(1000, tmp_path / "inside")
    assert re.match(damage, f"{error.value.reason}: {error.value}")
    assert not (tmp_path / "a").exists()


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
