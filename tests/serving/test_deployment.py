"""What operators load, switch, roll back and unload, with a host that only records what it is told."""

import asyncio

import pytest

from policy import published
from serving.errors import StartupError
from serving.policies import copies as copies_module
from serving.policies.copies import Copies
from serving.policies.status import CanaryStatus, PolicyStatus, ShadowStatus
from serving.policy_settings import BucketUrl
from tests.serving.conftest import wait_until
from tests.serving.deployment_bench import NAME, Bench, refused, status


async def test_a_version_that_is_loaded_is_not_refused_any_more(bench: Bench) -> None:
    deployment = bench.start(follow=False)
    bench.publish(2)
    bench.host.refuses[2] = "hash"
    with refused("version_refused"):
        await deployment.load(NAME, 2)
    assert [each.version for each in status(deployment).refused] == [2]
    del bench.host.refuses[2]
    await deployment.load(NAME, 2)
    assert (status(deployment).loaded, status(deployment).refused) == ((1, 2), ())


async def test_a_rollback_goes_to_the_former_version_and_stays_there(bench: Bench) -> None:
    deployment = bench.start()
    for version in (2, 3):
        bench.publish(version)
        await deployment.poll()
    bench.host.did.clear()
    assert (await deployment.rollback(NAME)).live == 2
    assert bench.host.did == [("switch", 2)]
    assert status(deployment) == PolicyStatus(
        NAME, 2, (1,), (1, 2, 3), following=False, wanted="latest", refused=(), rolled_back=(3,)
    )
    bench.publish(4)
    await deployment.poll()
    assert status(deployment).live == 2
    assert (await deployment.rollback(NAME)).live == 1
    with refused("no_previous"):
        await deployment.rollback(NAME)


async def test_a_rollback_does_not_wait_for_a_version_that_is_being_loaded(bench: Bench) -> None:
    deployment = bench.start()
    bench.publish(2)
    await deployment.poll()
    bench.publish(3)
    bench.host.held[3] = asyncio.Event()
    polling = asyncio.create_task(deployment.poll())
    await wait_until(lambda: ("prepare", 3) in bench.host.did)
    assert (await deployment.rollback(NAME)).live == 1
    bench.host.held[3].set()
    await polling
    assert status(deployment) == PolicyStatus(
        NAME, 1, (), (1, 2, 3), following=False, wanted="latest", refused=(), rolled_back=(2,)
    )


async def test_a_switch_loads_the_version_and_ends_the_following(bench: Bench) -> None:
    deployment = bench.start()
    for version in (2, 3):
        bench.publish(version)
        await deployment.poll()
    bench.host.did.clear()
    await deployment.switch(NAME, 2)  # is loaded
    assert bench.host.did == [("switch", 2)]
    assert status(deployment).previous == (3, 1)
    assert not status(deployment).following
    bench.publish(4)
    await deployment.switch(NAME, 4)
    assert bench.host.did[1:] == [("prepare", 4), ("switch", 4), ("unload", 1)]
    with refused("unknown_version", "policy maze has no version 9 in .*; the newest ones are: 1, 2, 3, 4"):
        await deployment.switch(NAME, 9)


async def test_a_switch_loads_a_version_again_that_was_unloaded_while_it_waited(bench: Bench) -> None:
    deployment = bench.start()
    bench.publish(2)
    await deployment.poll()
    bench.host.may_switch.clear()
    rollback = asyncio.create_task(deployment.rollback(NAME))
    await asyncio.sleep(0)  # it holds the lock until the host has made the switch
    await deployment.load(NAME, 2)  # is live still
    bench.publish(3)
    await deployment.load(NAME, 3)
    bench.host.did.clear()
    unload = asyncio.create_task(deployment.unload(NAME, 3))
    await asyncio.sleep(0)
    switch = asyncio.create_task(deployment.switch(NAME, 3))
    await asyncio.sleep(0)
    bench.host.may_switch.set()
    await asyncio.gather(rollback, unload, switch)
    assert bench.host.did == [("unload", 3), ("prepare", 3), ("switch", 3)]


async def test_a_refused_version_does_not_become_live_by_a_switch(bench: Bench) -> None:
    deployment = bench.start()
    bench.publish(2)
    bench.host.refuses[2] = "interface"
    with refused("version_refused", "it is damaged"):
        await deployment.switch(NAME, 2)
    assert status(deployment).live == 1
    assert status(deployment).following


async def test_a_version_can_be_loaded_beside_the_live_one_and_unloaded(bench: Bench) -> None:
    deployment = bench.start()
    bench.publish(2)
    await deployment.follow(NAME, on=False)
    await deployment.load(NAME, 2)
    assert (status(deployment).live, status(deployment).loaded) == (1, (1, 2))
    with refused("version_is_live", "version 1 of maze is live"):
        await deployment.unload(NAME, 1)
    await deployment.unload(NAME, 2)
    assert bench.host.did == [("prepare", 2), ("unload", 2)]
    with refused("unknown_version", "version 2 of maze is not loaded; loaded are: 1"):
        await deployment.unload(NAME, 2)
    with refused("unknown_policy", "there is no policy 'ant'; there are: maze"):
        await deployment.load("ant", 2)


async def test_the_copy_of_a_version_that_an_operator_loads_is_kept_and_others_are_removed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies_module, "_SPARE", 0)
    url, folder = BucketUrl("s3://bucket/maze"), bench.folder / "policies"
    deployment = bench.start(copies=Copies(url, folder))
    bench.publish(2)
    bench.publish(3)
    await deployment.load(NAME, 2)
    assert published.versions(folder) == [1, 2]
    Copies(url, folder).keep(set())  # as another server of this user
    assert published.versions(folder) == [1, 2]


async def test_the_copy_of_a_version_that_is_not_loaded_any_more_is_removed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies_module, "_SPARE", 0)
    folder = bench.folder / "policies"
    deployment = bench.start(copies=Copies(BucketUrl("s3://bucket/maze"), folder))
    for version in (2, 3):
        bench.publish(version)
        await deployment.switch(NAME, version)
    assert published.versions(folder) == [1, 2, 3]
    await deployment.unload(NAME, 2)
    assert published.versions(folder) == [1, 3]
    await deployment.forget(NAME, 1)
    assert published.versions(folder) == [3]


async def test_a_version_that_a_new_worker_cannot_load_is_no_rollback_any_more(bench: Bench) -> None:
    deployment = bench.start()
    bench.publish(2)
    await deployment.poll()
    await deployment.forget(NAME, 1)
    assert status(deployment).loaded == (2,)
    assert bench.stored().previous == ()
    with refused("no_previous"):
        await deployment.rollback(NAME)


async def test_a_switch_that_fails_decides_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = bench.start()
    bench.publish(2)

    async def fail(policy: str, version: int) -> None:
        raise StartupError("the worker failed; its log says why")

    monkeypatch.setattr(bench.host, "switch", fail)
    with refused("busy", "version 2 of maze is not made live: the worker failed"):
        await deployment.switch(NAME, 2)
    found = status(deployment)
    assert (found.live, found.following, found.previous) == (1, True, ())
    assert found.loaded == (1, 2)  # so that an operator can unload it


async def test_a_trial_that_cannot_be_ended_is_still_there(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = bench.start()
    bench.publish(2)
    await deployment.canary(NAME, 2, share=0.5)
    await deployment.shadow(NAME, 2, share=0.5)

    async def fail(policy: str, version: int, *, share: float) -> None:
        raise StartupError("the worker failed; its log says why")

    monkeypatch.setattr(bench.host, "set_canary", fail)
    monkeypatch.setattr(bench.host, "set_shadow", fail)
    for kind, end in (("canary", deployment.end_canary), ("shadow", deployment.end_shadow)):
        with refused("busy", f"the {kind} of maze stays as it is: the worker failed"):
            await end(NAME)
    found = status(deployment)
    assert (found.canary, found.shadow) == (CanaryStatus(2, 0.5, None), ShadowStatus(2, 0.5))


async def test_a_rollback_is_kept_although_the_shadow_cannot_be_ended(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = bench.start()
    bench.publish(2)
    await deployment.switch(NAME, 2)
    await deployment.shadow(NAME, 1, share=0.5)

    async def fail(policy: str, version: int, *, share: float) -> None:
        raise StartupError("the worker failed; its log says why")

    monkeypatch.setattr(bench.host, "set_shadow", fail)
    with refused("busy", "the shadow of maze stays as it is"):
        await deployment.rollback(NAME)
    assert status(deployment).live == 1
    kept = bench.state_file.read()
    assert kept
    assert kept.policies[NAME].live == 1
