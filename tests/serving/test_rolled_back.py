"""Versions that were rolled back: following takes none of them up until one is live again."""

from unittest.mock import AsyncMock

import pytest

from serving.errors import StartupError
from serving.policies.deployment import Deployment
from serving.policy_settings import Wanted
from tests.serving.deployment_bench import NAME, Bench, refused, status


@pytest.fixture
def deployment(bench: Bench) -> Deployment:
    """Version 1 is live, and 2 and 3 are on disk, not followed."""
    bench.publish(2)
    bench.publish(3)
    return bench.start(follow=False)


@pytest.mark.parametrize("ended_by", ["off", "another canary", "shadow", "load"])
async def test_a_version_that_was_rolled_back_is_not_followed_after_it_was_tried_again(
    bench: Bench, deployment: Deployment, ended_by: str
) -> None:
    await deployment.switch(NAME, 3)
    await deployment.rollback(NAME)
    await deployment.canary(NAME, 3, share=0.1)
    assert status(deployment).rolled_back == bench.stored().rolled_back == (3,)
    if ended_by == "another canary":
        await deployment.canary(NAME, 2, share=0.1)
    await deployment.end_canary(NAME)
    if ended_by == "shadow":
        await deployment.shadow(NAME, 3, share=0.1)
        await deployment.end_shadow(NAME)
    if ended_by == "load":
        await deployment.load(NAME, 3)
    await deployment.follow(NAME, on=True)
    await deployment.poll()
    assert (status(deployment).live, status(deployment).rolled_back) == (2, (3,))


async def test_a_version_that_was_rolled_back_counts_as_such_until_it_is_live(
    bench: Bench, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deployment.switch(NAME, 3)
    await deployment.canary(NAME, 1, share=0.1)  # which was live before
    await deployment.rollback(NAME)
    await deployment.rollback(NAME)
    assert (status(deployment).live, status(deployment).rolled_back) == (1, (3,))
    with monkeypatch.context() as patch, refused("busy", "version 3 of maze is not made live: worker 1 is blocked"):
        patch.setattr(bench.host, "switch", AsyncMock(side_effect=StartupError("worker 1 is blocked")))
        await deployment.switch(NAME, 3)
    assert status(deployment).rolled_back == (3,)
    await deployment.switch(NAME, 3)
    assert status(deployment).rolled_back == bench.stored().rolled_back == ()


@pytest.mark.parametrize(("wanted", "hint"), [("latest", " until kilolayer-admin follow"), (1, "")])
async def test_a_rollback_says_how_to_follow_again_if_that_is_possible(
    bench: Bench, wanted: Wanted, hint: str, caplog: pytest.LogCaptureFixture
) -> None:
    bench.publish(2)
    deployment = bench.start(wanted=wanted, follow=False)
    await deployment.switch(NAME, 2)
    await deployment.rollback(NAME)
    assert caplog.messages == [f"maze is rolled back from version 2 to 1; new versions are not taken up{hint}"]
