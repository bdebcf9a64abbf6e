"""What a run records of the git checkout that it runs from."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from training.run_dir import checkout


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(checkout, "_TIMEOUT_S", 120.0)  # the machine may be busy
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "code.py").write_text("one = 1\n")
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message=first")
    return folder


def test_a_clean_checkout_is_its_commit(repository: Path) -> None:
    (repository / "notes.txt").write_text("git does not track this")
    assert checkout.find(repository) == (git(repository, "rev-parse", "HEAD").strip(), b"")


def test_changes_are_those_of_git_diff_and_named_after_their_hash(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "code.py").write_text("one = 2\n")
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as in a hook of another repository
    found = checkout.find(repository)
    assert found is not None
    monkeypatch.delenv("GIT_DIR")
    git(repository, "add", ".")  # staged or not, the difference to the commit is the same
    assert checkout.find(repository) == found
    assert b"\n-one = 1\n+one = 2\n" in found.diff
    assert found.diff_name == f"{hashlib.sha256(found.diff).hexdigest()[:12]}.diff"


def test_a_large_diff_is_cut(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkout, "MOST_BYTES", 1000)
    (repository / "code.py").write_text("x = 1\n" * 200_000)
    found = checkout.find(repository)
    assert found is not None
    assert len(found.diff.partition(b"\n(cut here")[0]) == 1000
    assert found.diff.endswith(b"(cut here: the rest of the diff is not stored)\n")


def test_a_git_that_does_not_answer_is_killed(repository: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "git").write_text("#!/bin/sh\necho $$ > pid\nexec sleep 6000\n")
    (tmp_path / "git").chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.chdir(tmp_path)
    for limit_s in (0.5, 5.0, 50.0):  # the longer ones for a machine too busy to start it in a shorter one
        monkeypatch.setattr(checkout, "_TIMEOUT_S", limit_s)
        assert checkout.find(repository) is None
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
            break
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_code_that_is_no_checkout_has_none(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = repository / "site-packages"
    installed.mkdir()
    assert checkout.find(installed) is None  # in the checkout of something else
    assert checkout.find(tmp_path) is None
    assert checkout.find(repository) is not None
    monkeypatch.setenv("PATH", str(tmp_path))  # without git
    assert checkout.find(repository) is None
