"""Which new versions become live by themselves, with a host that only records what it is told."""

import asyncio
import logging
import threading
from pathlib import Path
from unittest.mock import Mock

import pytest

from serving.policies import loading
from serving.policies.state_file import VersionRule
from serving.policies.status import PolicyStatus
from tests.serving.deployment_bench import NAME, Bench, refused, status
from tests.serving.sources import policy_source


async def test_a_new_version_is_loaded_then_made_live_and_nothing_happens_without_one(bench: Bench) -> None:
    deployment = bench.start()
    await deployment.poll()
    assert bench.host.did == []
    bench.publish(3)
    bench.publish(2)
    await deployment.poll()
    await deployment.poll()
    assert bench.host.did == [("prepare", 3), ("switch", 3)]
    assert status(deployment) == PolicyStatus(NAME, 3, (1,), (1, 3), following=True, wanted="latest", refused=())


async def test_versions_that_are_older_than_the_live_one_are_not_taken_up(bench: Bench) -> None:
    deployment = bench.start(live=5)  # whose folder was deleted meanwhile
    bench.publish(4)
    await deployment.poll()
    assert bench.host.did == []


async def test_the_best_version_is_followed_by_its_evaluation(bench: Bench) -> None:
    deployment = bench.start(wanted="best")
    bench.publish(2, stay=0.5)
    bench.publish(3, stay=0.4)
    await deployment.poll()
    assert bench.host.did == [("prepare", 2), ("switch", 2)]
    bench.publish(4, stay=0.5)
    await deployment.poll()
    assert status(deployment).live == 4


async def test_a_policy_that_is_not_followed_keeps_its_version(bench: Bench) -> None:
    deployment = bench.start(follow=False)
    bench.publish(2)
    await deployment.poll()
    assert bench.host.did == []
    await deployment.follow(NAME, on=True)
    await deployment.poll()
    assert status(deployment).live == 2
    await deployment.follow(NAME, on=False)
    bench.publish(3)
    await deployment.poll()
    assert status(deployment).live == 2


async def test_two_former_versions_stay_loaded_and_an_older_one_is_unloaded(bench: Bench) -> None:
    deployment = bench.start(keep=2)
    for version in (2, 3, 4):
        bench.publish(version)
        await deployment.poll()
    assert status(deployment).previous == (3, 2)
    assert status(deployment).loaded == (2, 3, 4)
    assert bench.host.did[-1] == ("unload", 1)


async def test_a_version_that_is_refused_is_tried_again_only_when_its_files_change(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    deployment = bench.start()
    bench.publish(2)
    bench.host.refuses[2] = "hash"
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            await deployment.poll()
    assert bench.host.did == [("prepare", 2)]
    assert caplog.messages == ["version 2 of maze is refused (hash), and version 1 stays live: it is damaged"]
    (about,) = status(deployment).refused
    assert (about.version, about.reason, about.detail) == (2, "hash", "it is damaged")
    (bench.folder / "policies/2/probes.npz").write_bytes(b"as it should be")
    del bench.host.refuses[2]
    await deployment.poll()
    assert status(deployment).live == 2
    assert status(deployment).refused == ()


async def test_the_next_wanted_version_is_taken_if_the_newest_is_refused(bench: Bench) -> None:
    deployment = bench.start()
    bench.publish(2)
    bench.publish(3)
    bench.host.refuses[3] = "probes"
    await deployment.poll()
    assert bench.host.did == [("prepare", 3), ("prepare", 2), ("switch", 2)]


async def test_a_refused_version_that_is_deleted_is_forgotten(bench: Bench) -> None:
    deployment = bench.start()
    bench.publish(2)
    bench.host.refuses[2] = "hash"
    await deployment.poll()
    for path in (bench.folder / "policies/2").iterdir():
        path.unlink()
    (bench.folder / "policies/2").rmdir()
    await deployment.poll()
    assert status(deployment).refused == ()


async def test_a_version_without_its_manifest_is_still_being_copied(bench: Bench) -> None:
    deployment = bench.start()
    bench.publish(2)
    (bench.folder / "policies/2/manifest.json").unlink()
    await deployment.poll()
    assert bench.host.did == []
    with refused(
        "unknown_version", "has no version 2 in .* with a manifest.json, which is copied last; the newest ones are: 1"
    ):
        await deployment.load(NAME, 2)


async def test_what_the_machine_lacks_is_not_blamed_on_the_version(bench: Bench) -> None:
    deployment = bench.start()
    bench.publish(2)
    bench.host.lacks.add(2)
    for _ in range(30):
        await deployment.poll()
    assert bench.host.did == [("prepare", 2)]
    with refused("busy", "too little memory; try again later"):
        await deployment.load(NAME, 2)
    bench.host.lacks.clear()
    await deployment.poll()
    await deployment.poll()
    assert status(deployment).live == 2


async def test_a_folder_that_cannot_be_read_is_named_and_polled_later(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = bench.start()

    def refuse(_folder: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with caplog.at_level(logging.WARNING):
        await deployment.poll()
    assert caplog.messages == [f"cannot read {bench.folder}/policies (Permission denied); trying again later"]
    assert status(deployment).live == 1


async def test_following_again_takes_up_newer_versions_but_not_the_ones_rolled_back(bench: Bench) -> None:
    deployment = bench.start()
    bench.publish(2)
    await deployment.poll()
    await deployment.rollback(NAME)
    await deployment.follow(NAME, on=True)
    await deployment.poll()
    assert status(deployment).live == 1
    bench.publish(3)
    await deployment.poll()
    assert status(deployment).live == 3


async def test_following_names_the_version_that_is_taken_up_now(bench: Bench) -> None:
    deployment = bench.start(follow=False)
    for version in (2, 3, 4, 5):
        bench.publish(version)
    assert await deployment.follow(NAME, on=True) == 5
    (bench.folder / "policies/5/manifest.json").unlink()  # it is still being copied
    bench.host.refuses[4] = "hash"
    with refused("version_refused"):
        await deployment.load(NAME, 4)
    await deployment.switch(NAME, 3)
    await deployment.rollback(NAME)
    assert await deployment.follow(NAME, on=True) == 2
    assert await deployment.follow(NAME, on=False) is None
    await deployment.follow(NAME, on=True)
    await deployment.poll()
    assert status(deployment).live == await deployment.follow(NAME, on=True) == 2


async def test_following_the_best_version_names_it(bench: Bench) -> None:
    deployment = bench.start(wanted="best", follow=False)
    bench.publish(2, stay=0.75)
    bench.publish(3, stay=0.5)
    assert await deployment.follow(NAME, on=True) == 2


async def test_following_goes_on_if_the_versions_cannot_be_read_in_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = bench.start(follow=False)
    bench.publish(2)
    may_answer = threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(loading, "_NEXT_S", 0.01)
        patch.setattr(loading, "candidates", lambda _: may_answer.wait(60) and [])
        assert await deployment.follow(NAME, on=True) is None
        may_answer.set()
        patch.setattr(loading, "candidates", Mock(side_effect=PermissionError(13, "Permission denied")))
        assert await deployment.follow(NAME, on=True) is None
    await deployment.poll()
    assert status(deployment).live == 2


async def test_one_fixed_version_is_not_followed(bench: Bench) -> None:
    deployment = bench.start(wanted=1, follow=False)
    with refused("fixed_version", "version 1 of maze is wanted by --versions"):
        await deployment.follow(NAME, on=True)


async def test_a_bug_while_one_policy_is_polled_is_logged_and_does_not_end_the_following(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    deployment = bench.start()
    bench.publish(2)
    with monkeypatch.context() as patch:
        patch.setattr(bench.host, "prepare", None)
        await deployment.poll()
    assert caplog.messages == ["taking up a new version of maze fails; trying again later"]
    deployment.poll_now()
    await deployment.poll()
    assert status(deployment).live == 2


async def test_a_new_rule_is_taken_once_though_the_policy_is_not_followed(bench: Bench) -> None:
    deployment = bench.start(follow=False)
    bench.publish(2)
    bench.publish(3)
    deployment.take_rules([policy_source(bench.folder, name=NAME, wanted=2, follow=False)])
    await deployment.poll()
    assert status(deployment).live == 2
    assert status(deployment).wanted == "2"
    await deployment.rollback(NAME)
    await deployment.poll()
    assert status(deployment).live == 1
    assert bench.stored().rule == VersionRule("2", follow=False)


async def test_a_new_rule_ends_what_an_operator_decided_and_an_old_one_does_not(bench: Bench) -> None:
    deployment = bench.start()
    bench.publish(2)
    await deployment.poll()
    await deployment.rollback(NAME)
    deployment.take_rules([policy_source(bench.folder, name=NAME, wanted="latest", follow=True)])
    await deployment.poll()
    assert (status(deployment).live, status(deployment).following) == (1, False)
    deployment.take_rules([policy_source(bench.folder, name=NAME, wanted="best", follow=True)])
    bench.publish(3, stay=1.0)
    await deployment.poll()
    assert (status(deployment).live, status(deployment).following) == (3, True)


async def test_a_new_rule_that_names_a_version_takes_it_up_though_it_was_rolled_back(bench: Bench) -> None:
    deployment = bench.start()
    bench.publish(2)
    await deployment.poll()
    await deployment.rollback(NAME)
    deployment.take_rules([policy_source(bench.folder, name=NAME, wanted=2, follow=False)])
    await deployment.poll()
    assert (status(deployment).live, status(deployment).rolled_back) == (2, ())


async def test_a_new_rule_that_no_version_fits_changes_nothing(bench: Bench) -> None:
    deployment = bench.start(follow=False)
    deployment.take_rules([policy_source(bench.folder, name=NAME, wanted="best", follow=False)])
    await deployment.poll()
    bench.publish(2, stay=1.0)
    await deployment.poll()
    assert bench.host.did == []


@pytest.mark.parametrize("is_published", [True, False])
async def test_a_new_rule_that_comes_during_a_poll_is_taken_by_the_next_one(
    bench: Bench, *, is_published: bool
) -> None:
    """Version 3 is loaded or refused by the rule before, which wants the newest one."""
    deployment = bench.start(follow=False)
    bench.publish(2)
    deployment.take_rules([policy_source(bench.folder, name=NAME, wanted="best", follow=False)])
    deployment.take_rules([policy_source(bench.folder, name=NAME, wanted="latest", follow=False)])
    bench.publish(3)
    bench.host.held[3] = asyncio.Event()
    if not is_published:
        bench.host.refuses = {2: "hash", 3: "hash"}
    poll = asyncio.create_task(deployment.poll())
    while ("prepare", 3) not in bench.host.did:  # noqa: ASYNC110  a thread reads the folder
        await asyncio.sleep(0.001)
    deployment.take_rules([policy_source(bench.folder, name=NAME, wanted=2, follow=False)])
    bench.host.held[3].set()
    await poll
    assert status(deployment).live == 1
    bench.host.refuses.clear()
    (bench.folder / "policies/2/probes.npz").write_bytes(b"uploaded again")
    await deployment.poll()
    assert status(deployment).live == 2


async def test_taking_up_says_if_the_wanted_version_is_refused(bench: Bench) -> None:
    deployment = bench.start()
    bench.publish(2)
    await deployment.take_up(NAME)
    assert status(deployment).live == 2
    bench.publish(3)
    bench.host.refuses[3] = "hash"
    for _ in range(2):  # it is loaded once, and refused twice
        with refused("version_refused", "version 3 of maze is refused"):
            await deployment.take_up(NAME)
    assert bench.host.did.count(("prepare", 3)) == 1
    await deployment.follow(NAME, on=False)
    await deployment.take_up(NAME)  # no effect


async def test_with_best_a_refused_version_that_is_worse_than_the_live_one_does_not_matter(bench: Bench) -> None:
    deployment = bench.start(wanted="best")
    bench.publish(2, stay=0.5)
    await deployment.take_up(NAME)
    bench.publish(3, stay=0.25)
    bench.host.refuses[3] = "hash"
    with refused("version_refused"):
        await deployment.load(NAME, 3)
    await deployment.take_up(NAME)
    assert status(deployment).live == 2
