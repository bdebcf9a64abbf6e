"""What a server starts with: the versions to try, and the decisions of its last run."""

import dataclasses
import logging
from pathlib import Path

import pytest

from serving.config import ServeConfig
from serving.errors import StartupError
from serving.policies.restart import first_choices, plan_restart
from serving.policies.state_file import PolicyState, State, StateFile, VersionRule
from tests.serving.sources import policy_source

KEPT = PolicyState(VersionRule("latest", follow=True), 20, previous=(10,), following=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with versions 10, 20 and 30; nothing reads their files here."""
    for version in (10, 20, 30):
        (tmp_path / "policies" / str(version)).mkdir(parents=True)
    return tmp_path / "policies"


def config(folder: Path, *, listen: str = "127.0.0.1:50051") -> ServeConfig:
    return ServeConfig(policies=(folder,), listen=listen, state_dir=folder.parent / "state")


def test_without_a_decision_the_rule_gives_the_order(folder: Path) -> None:
    assert first_choices(policy_source(folder)) == (30, 20, 10)
    assert first_choices(policy_source(folder, wanted=20)) == (20,)


def test_a_decision_is_followed_by_older_versions_and_newer_ones_are_the_last_resort(folder: Path) -> None:
    assert first_choices(policy_source(folder), KEPT) == (20, 10, 30)
    gone = dataclasses.replace(KEPT, live=5)
    assert first_choices(policy_source(folder), gone) == (5, 10, 20, 30)


def test_versions_that_were_rolled_back_are_the_very_last_resort(folder: Path) -> None:
    assert first_choices(policy_source(folder), dataclasses.replace(KEPT, rolled_back=(10,))) == (20, 30, 10)
    gone = dataclasses.replace(KEPT, live=40, rolled_back=(20, 30))
    assert first_choices(policy_source(folder), gone) == (40, 10, 30, 20)


def test_a_folder_that_cannot_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_folder: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(StartupError, match=f"cannot read {folder} .Permission denied.; check its permissions"):
        first_choices(policy_source(folder))


def test_a_start_with_the_same_flags_takes_the_decision(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    StateFile(folder.parent / "state").write(State({"point_u_maze": KEPT}))
    with caplog.at_level(logging.INFO):
        plan = plan_restart(config(folder), [policy_source(folder, follow=True)])
    assert plan.kept == {"point_u_maze": KEPT}
    assert plan.choices == ((20, 10, 30),)
    assert caplog.messages == ["live versions as before the restart: point_u_maze@20 (not following)"]


def test_a_start_with_other_flags_takes_the_flags(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    StateFile(folder.parent / "state").write(State({"point_u_maze": KEPT}))
    with caplog.at_level(logging.INFO):
        plan = plan_restart(config(folder), [policy_source(folder, wanted="best", follow=True)])
    assert plan.kept == {}
    assert sorted(plan.choices[0]) == [10, 20, 30]
    (line,) = caplog.messages
    assert line.startswith("live versions by the flags: point_u_maze (")


def test_a_folder_that_cannot_be_written_is_said_once_and_nothing_is_kept(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder.parent / "state").write_text("a file in its place")
    plan = plan_restart(config(folder), [policy_source(folder)])
    assert plan.state_file is None
    (line,) = caplog.messages
    assert line.startswith("decisions about live versions do not survive a restart, because ")


def test_a_port_that_the_system_chooses_names_no_default_folder(folder: Path) -> None:
    chosen = ServeConfig(policies=(folder,), listen="127.0.0.1:0")
    assert plan_restart(chosen, [policy_source(folder)]).state_file is None


def test_a_second_server_with_the_same_folder_does_not_start(folder: Path) -> None:
    plan = plan_restart(config(folder), [policy_source(folder)])
    assert plan.state_file
    with pytest.raises(StartupError, match=f"keeps its decisions in {folder.parent / 'state'}; stop it first"):
        plan_restart(config(folder, listen="127.0.0.1:50052"), [policy_source(folder)])
