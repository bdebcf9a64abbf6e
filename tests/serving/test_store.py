import dataclasses
import errno
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tensorstore

from policy import bundle
from policy.bundle import Bundle
from serving.errors import RefusedVersionError, StartupError
from serving.policies.restart import first_choices
from serving.policies.store import load_all, read
from serving.policy_settings import Wanted
from tests.serving.sources import policy_source

Publish = Callable[..., Path]


def damage(version: Path) -> None:
    """Flip one bit of the largest array file, which changes no size."""
    victim = max((version / "params").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)


def unwanted(reason: str) -> None:
    raise AssertionError(f"a version was rejected: {reason}")


def load(
    folder: Path, *, on_rejected: Callable[[str], None], strict: bool = False, wanted: Wanted = "latest"
) -> Bundle:
    """The policy of the only folder."""
    source = policy_source(folder, wanted=wanted)
    (loaded,) = load_all([source], [first_choices(source)], on_rejected=on_rejected, strict=strict).values()
    return loaded


def test_the_newest_version_is_loaded_and_leftovers_are_not_versions(publish: Publish, tmp_path: Path) -> None:
    publish(tmp_path, 900)
    publish(tmp_path, 1000)
    (tmp_path / ".writing-2000-0123abcd").mkdir()
    assert load(tmp_path, on_rejected=unwanted).version == 1000


def test_a_damaged_version_is_named_counted_left_alone_and_the_next_older_taken(
    publish: Publish, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for version in (1, 2, 3):
        publish(tmp_path, version)
    damage(tmp_path / "3")
    (tmp_path / "2" / "probes.npz").unlink()
    reasons: list[str] = []
    with caplog.at_level(logging.WARNING):
        assert load(tmp_path, on_rejected=reasons.append).version == 1
    assert reasons == ["hash", "files"]
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert messages[0].startswith(f"skipping version 3: {tmp_path / '3'}")
    assert "probes.npz is missing" in messages[1]
    assert (tmp_path / "3").is_dir()


def test_strict_refuses_what_would_be_an_older_version(publish: Publish, tmp_path: Path) -> None:
    for version in (1, 2):
        publish(tmp_path, version)
    damage(tmp_path / "1")
    assert load(tmp_path, on_rejected=unwanted, strict=True).version == 2
    damage(tmp_path / "2")
    shutil.rmtree(tmp_path / "1")
    publish(tmp_path, 1)
    reasons: list[str] = []
    expected = f"--strict: the latest version cannot be served: {tmp_path / '2'} is not a usable policy .hash."
    with pytest.raises(StartupError, match=expected):
        load(tmp_path, on_rejected=reasons.append, strict=True)
    assert reasons == ["hash"]
    assert load(tmp_path, on_rejected=reasons.append).version == 1


@pytest.mark.parametrize(
    ("error", "lacking"),
    [
        (MemoryError(), "too little memory"),
        (OSError(errno.EMFILE, "Too many open files"), "too few file descriptors"),
        (RuntimeError("can't start new thread"), "to start a thread"),
    ],
)
def test_what_the_machine_lacks_is_not_blamed_on_a_version(
    publish: Publish,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    lacking: str,
) -> None:
    """Errors of tensorstore are BundleErrors by then; the cause is what counts."""
    for version in (1, 2):
        publish(tmp_path, version)

    def refuse(*_: object, **__: object) -> object:
        raise error

    monkeypatch.setattr(tensorstore, "open", refuse)
    with pytest.raises(StartupError, match=rf"cannot load {tmp_path / '2'}: .*{lacking}"):
        load(tmp_path, on_rejected=unwanted)


def test_policies_come_in_the_order_of_their_sources_under_the_names_they_are_served(
    publish: Publish, tmp_path: Path
) -> None:
    publish(tmp_path / "z", 1, name="zebra")
    publish(tmp_path / "a", 2, name="ant")
    sources = [policy_source(tmp_path / "z", name="zebra"), policy_source(tmp_path / "a", name="walker")]
    loaded = load_all(sources, [first_choices(source) for source in sources], on_rejected=unwanted)
    assert [(name, found.version) for name, found in loaded.items()] == [("zebra", 1), ("walker", 2)]
    assert loaded["walker"].spec == dataclasses.replace(bundle.read(tmp_path / "a" / "2").spec, name="walker")


def test_a_version_that_is_named_is_loaded_or_the_server_does_not_start(publish: Publish, tmp_path: Path) -> None:
    for version in (1, 2, 3):
        publish(tmp_path, version)
    assert load(tmp_path, on_rejected=unwanted, wanted=2).version == 2
    damage(tmp_path / "2")
    reasons: list[str] = []
    expected = f"version 2 of point_u_maze cannot be served: {tmp_path / '2'} is not a usable policy .hash."
    with pytest.raises(StartupError, match=expected):
        load(tmp_path, on_rejected=reasons.append, wanted=2)
    assert reasons == ["hash"]


def test_without_the_best_version_the_next_best_is_loaded(publish: Publish, tmp_path: Path) -> None:
    for version, stay in ((1, 0.5), (2, 0.75), (3, 0.25)):
        publish(tmp_path, version, stay=stay)
    assert load(tmp_path, on_rejected=unwanted, wanted="best").version == 2
    damage(tmp_path / "2")
    reasons: list[str] = []
    assert load(tmp_path, on_rejected=reasons.append, wanted="best").version == 1
    assert reasons == ["hash"]
    with pytest.raises(StartupError, match="--strict: the best version cannot be served"):
        load(tmp_path, on_rejected=reasons.append, wanted="best", strict=True)


def test_a_file_that_cannot_be_read_is_counted_and_passed_over(
    publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path, 1)

    def refuse(path: Path) -> os.stat_result:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "lstat", refuse)
    reasons: list[str] = []
    with pytest.raises(StartupError, match="version 1 of point_u_maze cannot be served: .*Permission denied"):
        load(tmp_path, on_rejected=reasons.append)
    assert reasons == ["unreadable"]


def test_the_detail_of_a_refusal_repeats_neither_the_version_nor_the_reason(
    publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = publish(tmp_path, 1)
    (version / "probes.npz").unlink()
    with pytest.raises(RefusedVersionError) as caught:
        read(policy_source(tmp_path), 1)
    assert (caught.value.reason, caught.value.detail) == ("files", "probes.npz is missing")
    assert str(caught.value).startswith(f"{version} is not a usable policy (files): probes.npz is missing; ")

    def refuse(*_: object, **__: object) -> Bundle:
        raise PermissionError(errno.EACCES, "Permission denied", str(version / "policy.json"))

    monkeypatch.setattr(bundle, "read", refuse)
    with pytest.raises(RefusedVersionError) as caught:
        read(policy_source(tmp_path), 1)
    assert (caught.value.reason, caught.value.detail) == (
        "unreadable",
        f"cannot read {version / 'policy.json'}: Permission denied",
    )
