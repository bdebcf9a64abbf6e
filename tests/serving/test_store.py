import errno
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import orbax.checkpoint
import pytest

from policy.bundle import Bundle
from serving.errors import StartupError
from serving.policies.store import load_all

Publish = Callable[..., Path]


def damage(version: Path) -> None:
    """Flip one bit of the largest array file, which changes no size."""
    victim = max((version / "params").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)


def unwanted(reason: str) -> None:
    raise AssertionError(f"a version was rejected: {reason}")


def load(folder: Path, *, on_rejected: Callable[[str], None], strict: bool = False) -> Bundle:
    """The policy of the only folder."""
    (loaded,) = load_all([folder], on_rejected=on_rejected, strict=strict).values()
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
    expected = f"--strict: the newest version cannot be served: {tmp_path / '2'} is not a usable policy .hash."
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
    """Orbax's own errors are BundleErrors by then; the cause is what counts."""
    for version in (1, 2):
        publish(tmp_path, version)

    def refuse(*_: object, **__: object) -> object:
        raise error

    monkeypatch.setattr(orbax.checkpoint.PyTreeCheckpointer, "restore", refuse)
    with pytest.raises(StartupError, match=rf"cannot load {tmp_path / '2'}: .*{lacking}"):
        load(tmp_path, on_rejected=unwanted)


def test_policies_come_in_the_order_of_their_folders(publish: Publish, tmp_path: Path) -> None:
    publish(tmp_path / "z", 1, name="zebra")
    publish(tmp_path / "a", 2, name="ant")
    loaded = load_all([tmp_path / "z", tmp_path / "a"], on_rejected=unwanted)
    assert [(name, found.version) for name, found in loaded.items()] == [("zebra", 1), ("ant", 2)]


def test_two_folders_with_one_name_are_refused(publish: Publish, tmp_path: Path) -> None:
    publish(tmp_path / "a", 1)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with pytest.raises(StartupError, match=r"a and .*b both hold a policy named point_u_maze; serve one"):
        load_all([tmp_path / "a", tmp_path / "b"], on_rejected=unwanted)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (str, "does not exist; train a policy first"),
        (lambda folder: folder.write_text(""), "is not a folder"),
        (lambda folder: folder.mkdir(), "holds no published version; train a policy first"),
    ],
)
def test_a_folder_without_policies_is_an_error_that_says_what_to_do(
    make: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "policies"
    make(folder)
    with pytest.raises(StartupError, match=message):
        load(folder, on_rejected=unwanted)


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(StartupError, match=rf"cannot read {tmp_path / 'x'} .Permission denied.; check its permissions"):
        load(tmp_path / "x", on_rejected=unwanted)


@pytest.mark.parametrize("given", ["run", "run/policies/7"])
def test_a_folder_one_off_is_told_the_right_one(publish: Publish, tmp_path: Path, given: str) -> None:
    publish(tmp_path / "run" / "policies", 7)
    with pytest.raises(StartupError, match=r"holds no published version, but .*run/policies does"):
        load(tmp_path / given, on_rejected=unwanted)


def test_a_file_that_cannot_be_read_is_counted_and_passed_over(
    publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path, 1)

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    reasons: list[str] = []
    with pytest.raises(StartupError, match=r"no version in .* is valid, of 1; the log has the reason for each"):
        load(tmp_path, on_rejected=reasons.append)
    assert reasons == ["unreadable"]
