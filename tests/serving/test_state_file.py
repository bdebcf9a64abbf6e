"""The file of an operator's decisions: what a restarted server takes from it, and what it makes of a damaged one."""

import asyncio
import errno
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from serving.errors import StartupError
from serving.policies.sequential_test import DecisionRule
from serving.policies.state_file import CanaryState, PolicyState, ShadowState, State, StateFile, VersionRule, choose

LATEST = VersionRule("latest", follow=True)
ANT = PolicyState(
    LATEST,
    live=900,
    previous=(800, 700),
    following=False,
    rolled_back=(1000,),
    canary=CanaryState(1100, 0.25, DecisionRule(false_rollback_rate=0.01, margin=0.05, min_episodes=99)),
    shadow=ShadowState(1200, 0.5),
)
BEE = PolicyState(VersionRule("2000", follow=False), live=2000, previous=(), following=False)
STATE = State({"bee": BEE, "ant": ANT})
WRITTEN = {
    "format": 1,
    "policies": {
        "ant": {
            "rule": {"wanted": "latest", "follow": True},
            "live": 900,
            "previous": [800, 700],
            "following": False,
            "rolled_back": [1000],
            "canary": {
                "version": 1100,
                "share": 0.25,
                "rule": {
                    "false_promotion_rate": 0.05,
                    "false_rollback_rate": 0.01,
                    "margin": 0.05,
                    "min_episodes": 99,
                },
            },
            "shadow": {"version": 1200, "share": 0.5},
        },
        "bee": {
            "rule": {"wanted": "2000", "follow": False},
            "live": 2000,
            "previous": [],
            "following": False,
            "rolled_back": [],
            "canary": None,
            "shadow": None,
        },
    },
}


@pytest.fixture
def file(tmp_path: Path) -> StateFile:
    return StateFile(tmp_path / "kilolayer" / "50051")


def write_raw(file: StateFile, text: str) -> None:
    file.path.parent.mkdir(parents=True, exist_ok=True)
    file.path.write_text(text)


def test_a_state_is_read_as_it_was_written(file: StateFile) -> None:
    assert file.read() is None
    file.write(STATE)
    assert file.path.name == "state.json"
    assert json.loads(file.path.read_text()) == WRITTEN
    assert file.read() == STATE
    file.write(State({}))
    assert file.read() == State({})
    assert [path.name for path in file.path.parent.iterdir()] == ["state.json"]


def test_the_folder_is_the_users_own(file: StateFile) -> None:
    file.write(STATE)
    assert file.path.parent.stat().st_mode & 0o777 == 0o700


def test_a_write_that_fails_leaves_the_earlier_state(file: StateFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write(STATE)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            file.write(State({}))
    assert file.read() == STATE
    file.write(State({}))
    assert file.read() == State({})


def test_file_and_folder_are_on_the_disk_before_and_after_the_new_name(
    file: StateFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state that survives a power failure only with luck would bring back a version that was rolled back."""
    synced: list[tuple[str, bool]] = []

    def record(descriptor: int) -> None:
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, file.path.exists()))

    monkeypatch.setattr(os, "fsync", record)
    file.write(STATE)
    assert synced == [(".state.json", False), ("50051", True)]


async def test_the_event_loop_runs_while_a_slow_disk_writes_and_states_keep_their_order(
    file: StateFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = threading.Event()
    fsync = os.fsync

    def slow(descriptor: int) -> None:
        assert written.wait(timeout=60)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    saves = [asyncio.create_task(file.save(state)) for state in (State({"bee": BEE}), STATE)]
    await asyncio.sleep(0.01)
    assert not any(save.done() for save in saves)
    assert file.read() is None
    written.set()
    await asyncio.gather(*saves)
    assert file.read() == STATE


def test_a_folder_belongs_to_one_server_at_a_time(file: StateFile) -> None:
    assert file.problem() == ""
    file.lock()
    other = StateFile(file.path.parent)
    refused = (
        f"the server with process number {os.getpid()} keeps its decisions in {file.path.parent}; stop it first, or"
        " choose another folder with --state-dir"
    )
    with pytest.raises(StartupError) as caught:
        other.lock()
    assert str(caught.value) == refused
    StateFile(file.path.parent.parent / "50052").path.parent.mkdir()
    StateFile(file.path.parent.parent / "50052").lock()


def test_a_killed_server_leaves_no_lock_and_what_it_started_has_none(file: StateFile) -> None:
    assert file.problem() == ""
    program = (
        "import pathlib, subprocess, sys, time; from serving.policies.state_file import StateFile;"
        " file = StateFile(pathlib.Path(sys.argv[1])); file.lock();"
        " worker = subprocess.Popen(['sleep', '600']); print(worker.pid, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", program, str(file.path.parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        worker = int(server.stdout.readline())
        with pytest.raises(StartupError, match=f"the server with process number {server.pid} "):
            file.lock()
        server.kill()
    file.lock()
    os.kill(worker, signal.SIGKILL)


def test_a_lock_file_that_cannot_be_opened_is_said(file: StateFile, caplog: pytest.LogCaptureFixture) -> None:
    assert file.problem() == ""
    (file.path.parent / ".state.json.lock").mkdir()
    file.lock()
    assert caplog.messages[0].startswith(f"{file.path.parent} cannot be locked (Is a directory); no other server may")


def test_a_file_system_without_locks_is_said(
    file: StateFile, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    assert file.problem() == ""
    monkeypatch.setattr(fcntl, "flock", refuse)
    file.lock()
    assert caplog.messages == [
        f"{file.path.parent} cannot be locked (No locks available); no other server may use it: choose another folder"
        " for each with --state-dir"
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "it is not JSON: Expecting value in line 1, column 1"),
        (json.dumps(WRITTEN)[:-40], "it is not JSON: "),
        ("[]", "it has another structure than expected"),
        ('{"policies": {}}', "it lacks 'format'"),
        ('{"format": 2, "policies": {}}', "it has format 2, and this release reads format 1"),
        ('{"format": 1, "policies": {"ant": {"live": 900}}}', "it lacks 'rule'"),
        (json.dumps(WRITTEN).replace("900", "true"), "it has True where int is expected"),
        (json.dumps(WRITTEN).replace("800", '"800"'), "it has '800' where int is expected"),
        (json.dumps(WRITTEN).replace("false", "0"), "it has 0 where bool is expected"),
        (json.dumps(WRITTEN).replace("0.25", "2.0"), "the share of a canary must be above 0 and at most 1, got 2.0"),
        (json.dumps(WRITTEN).replace("0.5}", "0.0}"), "the share of a shadow must be above 0 and at most 1, got 0.0"),
        (json.dumps(WRITTEN).replace("99", "0"), "min_episodes must be at least 1, got 0"),
        (json.dumps(WRITTEN).replace('"margin"', '"x"'), "it has another structure than expected"),
        ("[" * 100_000, "it has another structure than expected"),
        (" " * (1 << 20) + "[]", "it has more than 1048576 bytes"),
        ("\x00\n\x1b[2J", "it is not JSON: "),
    ],
)
def test_a_file_that_cannot_be_used_is_set_aside_with_one_line(
    file: StateFile, caplog: pytest.LogCaptureFixture, text: str, problem: str
) -> None:
    write_raw(file, text)
    assert file.read() is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    message = record.getMessage()
    assert message.startswith(f"{file.path} cannot be used: ")
    assert problem in message
    assert message.endswith("; it is now state.json.damaged, and the flags decide which versions are live")
    assert file.path.with_name("state.json.damaged").read_text() == text
    assert file.read() is None
    assert len(caplog.records) == 1, "a file that was set aside is not there any more"


def test_a_file_that_cannot_be_read_is_left_and_named(file: StateFile, caplog: pytest.LogCaptureFixture) -> None:
    file.path.mkdir(parents=True)
    assert file.read() is None
    assert caplog.messages == [f"cannot read {file.path} (Is a directory); the flags decide which versions are live"]


def test_a_folder_that_can_be_written_is_no_problem_and_is_left_empty(file: StateFile) -> None:
    assert file.problem() == ""
    assert list(file.path.parent.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "50051"
    assert StateFile(folder).problem() == (
        f"decisions about live versions do not survive a restart, because {folder} cannot be written (Not a directory);"
        " choose another folder with --state-dir"
    )


def test_a_start_with_the_same_flags_takes_the_decisions() -> None:
    choice = choose(STATE, {"ant": LATEST, "bee": BEE.rule})
    assert choice.kept == {"ant": ANT, "bee": BEE}
    assert choice.line == (
        "live versions as before the restart: ant@900 (not following, canary 1100 with share 0.25, shadow 1200 with"
        " share 0.5), bee@2000 (not following)"
    )


@pytest.mark.parametrize(
    "rule", [VersionRule("best", follow=True), VersionRule("latest", follow=False), VersionRule("900", follow=True)]
)
def test_a_start_with_other_flags_takes_the_flags(rule: VersionRule) -> None:
    choice = choose(STATE, {"ant": rule})
    assert choice.kept == {}
    assert choice.line == (
        "live versions by the flags: ant (the stored decision was made with --versions latest --follow)"
    )


def test_the_flags_of_one_policy_leave_the_decisions_about_another() -> None:
    choice = choose(STATE, {"ant": LATEST, "bee": LATEST, "cat": LATEST})
    assert choice.kept == {"ant": ANT}
    assert choice.line == (
        "live versions as before the restart: ant@900 (not following, canary 1100 with share 0.25, shadow 1200 with"
        " share 0.5); by the flags: bee (the stored decision was made"
        " with --versions 2000 --no-follow), cat (no decision is stored)"
    )


def test_a_first_start_takes_the_flags() -> None:
    choice = choose(None, {"ant": LATEST})
    assert choice.kept == {}
    assert choice.line == "live versions by the flags: ant (no decision is stored)"


def test_a_policy_that_is_followed_says_so() -> None:
    following = PolicyState(LATEST, live=1000, previous=(), following=True)
    assert choose(State({"ant": following}), {"ant": LATEST}).line.endswith("ant@1000 (following)")


def test_a_pipe_in_the_place_of_the_file_is_set_aside(file: StateFile, caplog: pytest.LogCaptureFixture) -> None:
    file.path.parent.mkdir(parents=True)
    os.mkfifo(file.path)
    assert file.read() is None
    assert "it is not a plain file; it is now state.json.damaged" in caplog.text
    file.write(STATE)
    assert file.read() == STATE
