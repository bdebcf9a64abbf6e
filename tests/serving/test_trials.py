"""Canaries and shadows: who begins and ends them, what reports decide, and what survives a restart."""

import asyncio
import contextlib
import itertools
import logging
import math
from collections.abc import AsyncGenerator

import pytest
from prometheus_client import CollectorRegistry

from serving.errors import InvalidRequestError
from serving.policies.canary import CanaryShare
from serving.policies.deployment import Deployment
from serving.policies.episode_reports import EpisodeReport, PolicyVersion
from serving.policies.sequential_test import DecisionRule
from serving.policies.state_file import CanaryState, PolicyState, ShadowState, VersionRule
from serving.policies.status import CanaryStatus, Rollback, ShadowStatus
from serving.policies.trial_metrics import TrialsCollector
from tests.serving.conftest import wait_until
from tests.serving.deployment_bench import NAME, Bench, refused, status

RULE = DecisionRule(min_episodes=1)  # half of the robots: blocks of one episode each; 7 wins in a row decide
ROBOTS = [f"robot {number}" for number in range(40)]


@pytest.fixture
def deployment(bench: Bench) -> Deployment:
    """Version 1 is live, and 2 and 3 are on disk, not followed."""
    bench.publish(2)
    bench.publish(3)
    return bench.start(follow=False)


@contextlib.asynccontextmanager
async def running(deployment: Deployment) -> AsyncGenerator[None]:
    task = asyncio.create_task(deployment.run())
    try:
        yield
    finally:
        task.cancel()


def metric(deployment: Deployment, name: str, **labels: str) -> float | None:
    collectors = CollectorRegistry()
    collectors.register(TrialsCollector(deployment))
    return collectors.get_sample_value(f"kilolayer_{name}", labels)


class Fleet:
    """Robots that report their episodes: those of the candidate 2, and those of the live version 1."""

    def __init__(self, bench: Bench, *, share: float = 0.5) -> None:
        self.bench = bench
        self.numbers = itertools.count()
        assignment = CanaryShare(policy=NAME, candidate=2, share=share)
        self.candidate = next(robot for robot in ROBOTS if assignment.gets_candidate(robot))
        self.live = next(robot for robot in ROBOTS if not assignment.gets_candidate(robot))

    def report(self, robot: str, version: int, *, reached: bool) -> None:
        by = PolicyVersion(NAME, version)
        self.bench.now_s += 1
        self.bench.reports.answered(robot, by)
        self.bench.reports.record(EpisodeReport(by, robot, next(self.numbers), reached, 0))

    def first_reports(self) -> None:
        """Episodes that may have begun before the canary."""
        self.report(self.live, 1, reached=True)
        self.report(self.candidate, 2, reached=True)

    def pair(self, *, live: bool, candidate: bool) -> None:
        self.report(self.live, 1, reached=live)
        self.report(self.candidate, 2, reached=candidate)


async def test_a_canary_loads_its_version_and_ends_the_following(bench: Bench) -> None:
    deployment = bench.start()
    bench.publish(2)
    await deployment.canary(NAME, 2, share=0.1)
    assert bench.host.did == [("prepare", 2), ("canary 0.1", 2)]
    assert (status(deployment).live, status(deployment).loaded, status(deployment).following) == (1, (1, 2), False)
    assert status(deployment).canary == CanaryStatus(2, 0.1, None)
    assert metric(deployment, "canary_share", policy=NAME, version="2") == 0.1
    await deployment.poll()
    assert status(deployment).live == 1
    with refused("busy", "maze has a canary of version 2, and is not followed meanwhile; first end it"):
        await deployment.follow(NAME, on=True)


async def test_the_end_of_a_canary_unloads_its_version(bench: Bench, deployment: Deployment) -> None:
    await deployment.canary(NAME, 2, share=0.1)
    with refused("version_is_live", "version 2 of maze is the candidate of a canary; end that first"):
        await deployment.unload(NAME, 2)
    bench.host.did.clear()
    await deployment.end_canary(NAME)
    assert bench.host.did == [("canary 0", 2), ("unload", 2)]
    assert status(deployment).canary is None
    assert metric(deployment, "canary_share", policy=NAME, version="2") is None
    await deployment.end_canary(NAME)
    assert len(bench.host.did) == 2


async def test_a_version_that_an_operator_loaded_stays_loaded_after_its_canary(
    bench: Bench, deployment: Deployment
) -> None:
    await deployment.load(NAME, 2)
    await deployment.canary(NAME, 2, share=0.1)
    await deployment.end_canary(NAME)
    assert bench.host.did == [("prepare", 2), ("canary 0.1", 2), ("canary 0", 2)]
    assert status(deployment).loaded == (1, 2)


async def test_a_canary_replaces_another_one(bench: Bench, deployment: Deployment) -> None:
    await deployment.canary(NAME, 2, share=0.1)
    bench.host.did.clear()
    await deployment.canary(NAME, 3, share=0.2)
    assert bench.host.did == [("prepare", 3), ("canary 0.2", 3), ("unload", 2)]
    assert status(deployment).loaded == (1, 3)


async def test_a_switch_ends_a_canary_and_a_shadow_of_the_version(bench: Bench, deployment: Deployment) -> None:
    await deployment.canary(NAME, 2, share=0.1)
    await deployment.shadow(NAME, 3, share=0.5)
    bench.host.did.clear()
    await deployment.switch(NAME, 3)
    assert bench.host.did == [("switch", 3), ("canary 0", 2), ("shadow 0", 3)]
    assert (status(deployment).canary, status(deployment).shadow, status(deployment).loaded) == (None, None, (1, 2, 3))


async def test_a_switch_to_the_live_version_ends_a_canary_too(bench: Bench, deployment: Deployment) -> None:
    await deployment.canary(NAME, 2, share=0.1)
    await deployment.switch(NAME, 1)
    assert status(deployment).canary is None
    assert bench.host.did[-1] == ("canary 0", 2)


async def test_a_rollback_during_a_canary_ends_it_and_its_version_is_not_followed_again(
    bench: Bench, deployment: Deployment
) -> None:
    await deployment.switch(NAME, 3)
    await deployment.canary(NAME, 2, share=0.1)
    assert await deployment.rollback(NAME) == Rollback(live=3, rolled_back=2, ended_canary=True)
    assert (status(deployment).live, status(deployment).previous, status(deployment).loaded) == (3, (1,), (1, 2, 3))
    assert bench.stored().rolled_back == status(deployment).rolled_back == (2,)
    assert await deployment.rollback(NAME) == Rollback(live=1, rolled_back=3, ended_canary=False)


async def test_the_live_version_is_not_tried(deployment: Deployment) -> None:
    with refused("version_is_live", "version 1 of maze is live; choose another one to try"):
        await deployment.canary(NAME, 1, share=0.1)
    with refused("version_is_live", "version 1 of maze is live; choose another one to try"):
        await deployment.shadow(NAME, 1, share=0.1)
    with refused("unknown_version"):
        await deployment.canary(NAME, 9, share=0.1)


async def test_a_share_out_of_range_loads_nothing(bench: Bench, deployment: Deployment) -> None:
    with pytest.raises(InvalidRequestError, match="the share of a canary must be above 0 and at most 1, got 0"):
        await deployment.canary(NAME, 2, share=0)
    with pytest.raises(InvalidRequestError, match="the share of a shadow must be above 0 and at most 1, got 1.5"):
        await deployment.shadow(NAME, 2, share=1.5)
    assert bench.host.did == []


async def test_a_shadow_is_loaded_and_unloaded_again(bench: Bench, deployment: Deployment) -> None:
    await deployment.shadow(NAME, 2, share=0.5)
    assert (status(deployment).shadow, status(deployment).loaded) == (ShadowStatus(2, 0.5), (1, 2))
    with refused("version_is_live", "version 2 of maze is a shadow; end that first"):
        await deployment.unload(NAME, 2)
    await deployment.shadow(NAME, 3, share=1.0)
    await deployment.end_shadow(NAME)
    assert bench.host.did == [
        *[("prepare", 2), ("shadow 0.5", 2)],
        *[("prepare", 3), ("shadow 1", 3), ("unload", 2)],
        *[("shadow 0", 3), ("unload", 3)],
    ]


async def test_one_version_may_be_canary_and_shadow(bench: Bench, deployment: Deployment) -> None:
    await deployment.canary(NAME, 2, share=0.1)
    await deployment.shadow(NAME, 2, share=0.5)
    await deployment.end_canary(NAME)
    assert status(deployment).loaded == (1, 2)
    await deployment.end_shadow(NAME)
    assert bench.host.did[-1] == ("unload", 2)


async def decided(deployment: Deployment, verdict: str) -> None:
    """Wait until one verdict is counted, which is last: then the decision is on disk."""
    await wait_until(lambda: metric(deployment, "canary_verdicts_total", policy=NAME, verdict=verdict) == 1)


async def test_a_better_candidate_becomes_live_by_itself(
    bench: Bench, deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(deployment):
        await deployment.canary(NAME, 2, share=0.5, rule=RULE)
        fleet = Fleet(bench)
        fleet.first_reports()
        for _ in range(6):
            fleet.pair(live=False, candidate=True)
        await asyncio.sleep(0.01)
        assert status(deployment).live == 1
        found = status(deployment).canary
        assert found
        assert (found.live_episodes, found.candidate_episodes) == (6, 6)
        assert found.better > math.log(18)  # see test_sequential_test.py
        assert found.worse < 0
        with caplog.at_level(logging.INFO):
            fleet.pair(live=False, candidate=True)
            await decided(deployment, "better")
        assert status(deployment).live == 2
        assert "maze: the reports show that version 2 is better" in caplog.messages
        assert "maze: new versions are not taken up until kilolayer-admin follow" in caplog.messages
        assert bench.host.did[-2:] == [("switch", 2), ("canary 0", 2)]
        assert (status(deployment).previous, status(deployment).canary) == ((1,), None)
        assert bench.stored().canary is None
        assert (await deployment.rollback(NAME)).live == 1


async def test_a_worse_candidate_is_rolled_back_by_itself(
    bench: Bench, deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(deployment):
        await deployment.canary(NAME, 2, share=0.5, rule=RULE)
        fleet = Fleet(bench)
        fleet.first_reports()
        for _ in range(7):
            fleet.pair(live=True, candidate=False)
        await decided(deployment, "worse")
        assert status(deployment).canary is None
        assert bench.host.did[-1] == ("canary 0", 2)
        assert (status(deployment).live, status(deployment).loaded) == (1, (1, 2))
        assert bench.stored().rolled_back == (2,)
        assert caplog.messages == [
            "maze: the reports show that version 2 is worse",
            "maze: version 2 is rolled back, and version 1 stays live; new versions are not taken up until"
            " kilolayer-admin follow",
        ]


async def test_a_bug_while_a_canary_ends_is_logged_and_the_next_report_ends_it(
    bench: Bench, deployment: Deployment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(deployment):
        await deployment.canary(NAME, 2, share=0.5, rule=RULE)
        fleet = Fleet(bench)
        fleet.first_reports()
        with monkeypatch.context() as patch:
            patch.setattr(bench.host, "switch", None)
            for _ in range(7):
                fleet.pair(live=False, candidate=True)
            await wait_until(lambda: "ending the canary of maze fails; trying again at its next report" in caplog.text)
        assert status(deployment).live == 1
        fleet.pair(live=False, candidate=True)
        await decided(deployment, "better")
        assert status(deployment).live == 2


async def test_a_canary_without_a_rule_decides_nothing(bench: Bench, deployment: Deployment) -> None:
    async with running(deployment):
        await deployment.canary(NAME, 2, share=0.5)
        fleet = Fleet(bench)
        for _ in range(20):
            fleet.pair(live=False, candidate=True)
        await asyncio.sleep(0.01)
        assert (status(deployment).live, status(deployment).canary) == (1, CanaryStatus(2, 0.5, None))


async def test_only_whole_episodes_of_assigned_robots_are_compared(bench: Bench, deployment: Deployment) -> None:
    fleet = Fleet(bench)
    fleet.report(fleet.live, 1, reached=True)  # before the canary

    def compared() -> tuple[int, int]:
        canary = status(deployment).canary
        assert canary
        return canary.live_episodes, canary.candidate_episodes

    await deployment.canary(NAME, 2, share=0.5, rule=RULE)
    fleet.first_reports()  # of episodes that may have begun before
    assert compared() == (0, 0)
    fleet.pair(live=True, candidate=True)
    assert compared() == (1, 1)
    fleet.report(fleet.live, 2, reached=True)  # a robot that names the candidate
    fleet.report(fleet.candidate, 1, reached=True)
    fleet.report(fleet.candidate, 3, reached=True)
    assert compared() == (1, 1)
    bench.now_s += 1
    await deployment.canary(NAME, 2, share=0.6, rule=RULE)  # some robots change within an episode
    again = Fleet(bench, share=0.6)
    again.numbers = fleet.numbers
    again.first_reports()
    assert compared() == (1, 1)
    again.pair(live=True, candidate=True)
    assert compared() == (2, 2)


async def test_another_rule_begins_the_comparison_anew(bench: Bench, deployment: Deployment) -> None:
    fleet = Fleet(bench)
    await deployment.canary(NAME, 2, share=0.5, rule=RULE)
    fleet.first_reports()
    fleet.pair(live=True, candidate=True)
    await deployment.canary(NAME, 2, share=0.5, rule=DecisionRule(min_episodes=5))
    found = status(deployment).canary
    assert found
    assert (found.live_episodes, found.candidate_episodes) == (0, 0)


async def test_trials_go_on_after_a_restart(bench: Bench, deployment: Deployment) -> None:
    await deployment.canary(NAME, 2, share=0.5, rule=RULE)
    await deployment.shadow(NAME, 3, share=0.25)
    kept = bench.stored()
    assert (kept.canary, kept.shadow) == (CanaryState(2, 0.5, RULE), ShadowState(3, 0.25))
    bench.host.did.clear()
    restarted = bench.start(follow=False, kept=kept)
    async with running(restarted):
        await wait_until(lambda: status(restarted).shadow == ShadowStatus(3, 0.25))
    assert bench.host.did == [("prepare", 2), ("canary 0.5", 2), ("prepare", 3), ("shadow 0.25", 3)]
    canary = status(restarted).canary
    assert canary
    assert (canary.version, canary.share, canary.rule, canary.candidate_episodes) == (2, 0.5, RULE, 0)
    assert bench.stored() == kept


async def test_a_canary_whose_version_is_gone_after_a_restart_is_one_line(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    kept = PolicyState(VersionRule("latest", follow=False), 1, (), False, canary=CanaryState(9, 0.5, None))
    restarted = bench.start(follow=False, kept=kept)
    async with running(restarted):
        await wait_until(lambda: len(caplog.messages) > 0)
    assert caplog.messages == [
        "the canary of version 9 of maze from before the restart cannot go on: policy maze has no version 9 in"
        f" {bench.folder}/policies; the newest ones are: 1"
    ]


async def test_until_they_are_loaded_a_canary_and_a_shadow_from_before_a_restart_are_shown_as_loading(
    bench: Bench, deployment: Deployment
) -> None:
    await deployment.canary(NAME, 2, share=0.5)
    await deployment.shadow(NAME, 3, share=0.25)
    kept = bench.stored()
    for version in (2, 3):
        bench.host.held[version] = asyncio.Event()
    restarted = bench.start(follow=False, kept=kept)
    async with running(restarted):
        found = status(restarted)
        assert found.canary == CanaryStatus(2, 0.5, None, loading=True)
        assert found.shadow == ShadowStatus(3, 0.25, loading=True)
        assert found.loaded == (1,)
        assert metric(restarted, "canary_share", policy=NAME, version="2") is None
        bench.host.held[2].set()
        await wait_until(lambda: status(restarted).canary == CanaryStatus(2, 0.5, None))
        assert status(restarted).shadow == ShadowStatus(3, 0.25, loading=True)
        await restarted.forget(NAME, 9)  # as for another policy, this writes the state
        assert bench.stored() == kept
        bench.host.held[3].set()
        await wait_until(lambda: status(restarted).shadow == ShadowStatus(3, 0.25))


@pytest.mark.parametrize("is_bug", [False, True])
async def test_a_canary_that_cannot_go_on_after_a_restart_does_not_end_the_shadow(
    bench: Bench, deployment: Deployment, monkeypatch: pytest.MonkeyPatch, *, is_bug: bool
) -> None:
    await deployment.canary(NAME, 2, share=0.5)
    await deployment.shadow(NAME, 3, share=0.25)
    restarted = bench.start(follow=False, kept=bench.stored())
    if is_bug:
        monkeypatch.setattr(bench.host, "set_canary", None)
    else:
        bench.host.refuses[2] = "hash"
    await restarted.restore()
    assert (status(restarted).canary, status(restarted).shadow) == (None, ShadowStatus(3, 0.25))
    assert (bench.stored().canary, bench.stored().shadow) == (None, ShadowState(3, 0.25))


async def test_a_version_on_trial_that_a_new_worker_cannot_load_is_on_trial_no_more(
    deployment: Deployment,
) -> None:
    await deployment.canary(NAME, 2, share=0.5)
    await deployment.shadow(NAME, 2, share=0.5)
    await deployment.forget(NAME, 2)
    assert (status(deployment).canary, status(deployment).shadow, status(deployment).loaded) == (None, None, (1,))
