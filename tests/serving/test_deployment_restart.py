"""What a deployment keeps for the next start, and how it goes on after one."""

import asyncio

import pytest

from serving.policies.state_file import CanaryState, PolicyState, ShadowState, VersionRule
from serving.policies.status import PolicyStatus
from tests.serving.deployment_bench import NAME, Bench, refused, status


async def test_decisions_are_kept_for_the_next_start(bench: Bench) -> None:
    deployment = bench.start()
    bench.publish(2)
    await deployment.poll()
    assert bench.stored() == PolicyState(VersionRule("latest", follow=True), 2, (1,), following=True, rolled_back=())
    await deployment.rollback(NAME)
    assert bench.stored() == PolicyState(VersionRule("latest", follow=True), 1, (), following=False, rolled_back=(2,))


async def test_a_restart_after_a_rollback_stays_rolled_back_with_its_former_versions_loaded(bench: Bench) -> None:
    bench.publish(2)
    bench.publish(3)
    kept = PolicyState(VersionRule("latest", follow=True), 2, (1,), following=False, rolled_back=(3,))
    deployment = bench.start(kept=kept, live=2)
    await deployment.restore()
    for _ in range(3):
        await deployment.poll()
    assert bench.host.did == [("prepare", 1)]
    assert status(deployment).live == 2
    assert (await deployment.rollback(NAME)).live == 1


async def test_actions_wait_until_the_versions_from_before_the_restart_are_loaded(bench: Bench) -> None:
    """Version 1 is not loaded yet, so a rollback to it would fail."""
    bench.publish(2)
    deployment = bench.start(kept=PolicyState(VersionRule("latest", follow=True), 2, (1,), following=False), live=2)
    assert status(deployment) == PolicyStatus(NAME, 2, (), (2,), following=False, wanted="latest", refused=())
    rolling_back = asyncio.create_task(deployment.rollback(NAME))
    with refused("busy", "still being loaded after the restart"):
        await deployment.follow(NAME, on=True)
    assert bench.host.did == []
    await deployment.restore()
    assert (await rolling_back).live == 1
    assert bench.host.did == [("prepare", 1), ("switch", 1)]
    await deployment.follow(NAME, on=True)


async def test_a_second_kill_before_all_is_loaded_loses_no_decision(bench: Bench) -> None:
    canary = CanaryState(3, 0.25, rule=None)
    kept = PolicyState(VersionRule("latest", follow=True), 2, (1,), False, (4,), canary, ShadowState(5, 0.5))
    deployment = bench.start(kept=kept, live=2)
    await deployment.forget(NAME, 9)  # as for another policy, this writes the state
    assert bench.stored() == kept


async def test_a_bug_while_versions_are_restored_does_not_keep_operators_waiting(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    deployment = bench.start(kept=PolicyState(VersionRule("latest", follow=True), 2, (1,), following=False), live=2)
    with monkeypatch.context() as patch:
        patch.setattr(bench.host, "prepare", None)
        await deployment.restore()
    assert caplog.messages == ["restoring the versions of maze fails"]
    with refused("no_previous"):
        await deployment.rollback(NAME)


async def test_a_live_version_that_is_gone_after_a_restart_ends_the_following(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    kept = PolicyState(VersionRule("latest", follow=True), 2, (1,), following=True, rolled_back=())
    deployment = bench.start(kept=kept, live=1)
    assert status(deployment) == PolicyStatus(NAME, 1, (), (1,), following=False, wanted="latest", refused=())
    assert "version 2 of maze, which was live before the restart, cannot be served; version 1 is" in caplog.text


async def test_a_decision_holds_though_it_cannot_be_kept(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    (bench.folder / "state").write_text("a file where the folder should be")
    deployment = bench.start()
    bench.publish(2)
    await deployment.poll()
    assert status(deployment).live == 2
    assert "this decision does not survive a restart" in caplog.text


async def test_former_versions_that_are_not_kept_are_not_in_the_stored_state(bench: Bench) -> None:
    deployment = bench.start(keep=1)
    for version in (2, 3):
        bench.publish(version)
        await deployment.poll()
    assert bench.stored().previous == (2,)
