"""Deployment: decides which version of each policy is live, and which others stay loaded.

A policy that is followed takes up what its --versions rule wants, as soon as it is published. An operator may load,
switch and roll back; a switch or a rollback ends the following, so that nothing undoes it. Every version is loaded and
checked before anything changes for robots. One that fails a check is refused, counted, and not tried again until its
files change; the live version goes on.

A version may be tried before it is live: as a canary, which answers a share of the robots, or as a shadow, whose
actions are only compared. A canary may end by itself: robots report how their episodes end, and a sequential test of
these reports makes its version live, or rolls it back.

The decisions are carried out by a `VersionHost`: this process, or all workers. Imports no JAX, because the supervisor
of several workers uses it. Everything runs on one event loop.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Protocol

from serving.errors import DeploymentError, InvalidRequestError, Reason
from serving.policies.canary import CanaryShare
from serving.policies.decisions import PolicyDecisions
from serving.policies.episode_reports import EpisodeReport, EpisodeReports, Receipt
from serving.policies.live_versions import LiveVersions, SwitchingHost
from serving.policies.loading import LoadingHost, VersionLoader
from serving.policies.polling import Poller
from serving.policies.restart import RestartPlan
from serving.policies.restoring import restore
from serving.policies.sequential_test import DecisionRule, Verdict
from serving.policies.source import PolicySource
from serving.policies.state_file import ShadowState, State
from serving.policies.status import PolicyStatus, Rollback
from serving.policies.trials import TrialHost, Trials

_LOGGER = logging.getLogger(__name__)


class VersionHost(LoadingHost, SwitchingHost, TrialHost, Protocol):
    """Carries out decisions; see `serving.policies.host.PolicyHost`."""


class Deployment:
    """The decisions about all policies of a server.

    Args:
        sources: the policies.
        host: carries out the decisions; it has loaded the live versions.
        plan: what was decided before the restart, and where decisions are kept.
        live: the live version of each policy.
        keep: how many former live versions of a policy stay loaded.
        reports: how episodes of robots end, for canaries.
        clock: monotonic seconds, as that of `reports`.
    """

    def __init__(
        self,
        sources: Sequence[PolicySource],
        host: VersionHost,
        plan: RestartPlan,
        *,
        live: Mapping[str, int],
        keep: int,
        reports: EpisodeReports,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host = host
        self._loader = VersionLoader(host, keep=keep)
        self._state_file = plan.state_file
        self._policies = {
            source.name: PolicyDecisions.first(source, live[source.name], plan.kept.get(source.name))
            for source in sources
        }
        self._trials = Trials(host, clock=clock)
        self._live_versions = LiveVersions(host, self._loader, self._trials, save=self._save)
        self._verdicts: Counter[tuple[str, Verdict]] = Counter()
        self._poller = Poller(self._take_up)
        reports.on_accepted = self._record

    def status(self) -> tuple[PolicyStatus, ...]:
        """Return what is decided about every policy."""
        return tuple(policy.status() for policy in self._policies.values())

    def verdicts(self) -> Mapping[tuple[str, Verdict], int]:
        """Return how many canaries of each policy ended by a verdict."""
        return self._verdicts.copy()

    async def load(self, policy: str, version: int) -> None:
        """Load a version, so that requests that name it are answered.

        Raises:
            DeploymentError: there is no such policy or version, or the version is refused.
        """
        found = await self._restored(policy)
        if await self._loader.load(found, version) and version not in found.loaded:
            found.also_loaded.add(version)
            await self._loader.keep_copies(found)

    async def unload(self, policy: str, version: int) -> None:
        """Unload a version that is not live.

        Raises:
            DeploymentError: there is no such policy or loaded version, or the version is live or on trial.
        """
        found = await self._restored(policy)
        async with found.changing:
            if use := found.on_trial.get(version):
                raise DeploymentError(Reason.VERSION_IS_LIVE, f"version {version} of {policy} is {use}; end that first")
            if version == found.live:
                raise DeploymentError(
                    Reason.VERSION_IS_LIVE, f"version {version} of {policy} is live; switch to another one"
                )
            if version not in found.loaded:
                loaded = ", ".join(map(str, sorted(found.loaded)))
                raise DeploymentError(
                    Reason.UNKNOWN_VERSION, f"version {version} of {policy} is not loaded; loaded are: {loaded}"
                )
            found.forget(version)
            await self._save()
        await self._loader.unload_unused(found, [version])

    async def switch(self, policy: str, version: int) -> None:
        """Make a version live, after loading it if needed. The policy is not followed any more.

        Raises:
            DeploymentError: there is no such policy or version, or the version is refused.
        """
        found = await self._restored(policy)
        async with self._loader.loaded(found, version):
            surplus = await self._live_versions.make_live(found, version, following=False)
        await self._loader.unload_unused(found, surplus)

    async def rollback(self, policy: str) -> Rollback:
        """Undo the last change, and return what that did. The policy is not followed any more.

        During a canary, this ends the canary. Otherwise the former live version becomes live again. It is loaded, so
        this takes milliseconds, even while another version is being loaded.

        Raises:
            DeploymentError: there is no such policy, or no former version is loaded.
        """
        found = await self._restored(policy)
        async with found.changing:
            return await self._live_versions.roll_back(found)

    async def canary(self, policy: str, version: int, *, share: float, rule: DecisionRule | None = None) -> None:
        """Answer a share of the robots with a version, after loading it if needed. The policy is not followed any more.

        With the version and the rule of the present canary, only its share changes, and what reports show is kept. A
        version that was rolled back counts as rolled back until it is live.

        `share` is above 0 and at most 1. `rule` is when the canary decides by itself; None: it does not.

        Raises:
            DeploymentError: there is no such policy or version, or the version is refused or live.
            InvalidRequestError: the share is out of range.
        """
        with _checked():
            assignment = CanaryShare(policy=policy, candidate=version, share=share)
        found = await self._restored(policy)
        async with self._loader.loaded(found, version):
            replaced = await self._trials.begin_canary(found, assignment, rule=rule)
            found.following = False
            await self._save()
        await self._loader.unload_unused(found, [replaced])

    async def end_canary(self, policy: str) -> None:
        """Answer all robots with the live version. No effect without a canary.

        Raises:
            DeploymentError: there is no such policy.
        """
        found = await self._restored(policy)
        async with found.changing:
            ended = await self._trials.end_canary(found)
            await self._save()
        await self._loader.unload_unused(found, [ended])

    async def shadow(self, policy: str, version: int, *, share: float) -> None:
        """Compare a share of the rows of the live version with a version, after loading it if needed.

        `share` is above 0 and at most 1. Errors as of `canary`.
        """
        with _checked():
            shadow = ShadowState(version, share)
        found = await self._restored(policy)
        async with self._loader.loaded(found, version):
            replaced = await self._trials.begin_shadow(found, shadow)
            await self._save()
        await self._loader.unload_unused(found, [replaced])

    async def end_shadow(self, policy: str) -> None:
        """Compare no more rows. Errors as of `end_canary`."""
        found = await self._restored(policy)
        async with found.changing:
            ended = await self._trials.end_shadow(found)
            await self._save()
        await self._loader.unload_unused(found, [ended])

    async def forget(self, policy: str, version: int) -> None:
        """Note that a version which is not live is not loaded any more."""
        found = self._find(policy)
        found.forget(version)
        _LOGGER.warning("version %d of %s is not loaded any more; a rollback to it is not possible", version, policy)
        await self._save()
        await self._loader.keep_copies(found)

    async def follow(self, policy: str, *, on: bool) -> int | None:
        """Take up new versions from now on, or no longer. Versions that were rolled back are not taken up again.

        Return the version that is taken up now unless a check refuses it; the live one if none is wanted more. None if
        the policy is not followed any more, or its folder cannot be read within a few seconds.

        Raises:
            DeploymentError: there is no such policy, it has a canary, one fixed version of it is wanted, or its
                versions are still being loaded after a restart.
        """
        found = self._find(policy)
        found.require_following_possible(on=on)
        found.following = on
        await self._save()
        upcoming = await self._loader.next_wanted(found) if on else None
        self._poller.poll_now(found)
        return upcoming

    def take_rules(self, sources: Sequence[PolicySource]) -> None:
        """Take what --versions and --follow say of these policies, and poll the folders as soon as possible."""
        for source in sources:
            self._policies[source.name].take_rule(source)
        self.poll_now()

    def poll_now(self) -> None:
        """Poll the folders as soon as possible, also those that could not be read or loaded."""
        for policy in self._policies.values():
            self._poller.poll_now(policy)

    async def run(self) -> None:
        """Restore what was decided; then take up new versions and end canaries. Does not return."""
        await self.restore()
        async with asyncio.TaskGroup() as tasks:
            for policy in self._policies.values():
                tasks.create_task(self._poller.run(policy))
            tasks.create_task(self._decide_canaries())

    async def restore(self) -> None:
        """Load what was loaded before the restart, and go on with what was tried. Actions of operators wait for it."""
        for policy in self._policies.values():
            await restore(policy, self._loader, self._trials)
            await self._loader.keep_copies(policy)
        await self._save()

    async def poll(self) -> None:
        """Poll the folders now, and take up what the followed policies want."""
        for policy in self._policies.values():
            await self._poller.poll(policy)

    async def take_up(self, policy: str) -> None:
        """Poll a policy now, and take up what it wants. No effect if it is not followed.

        Raises:
            DeploymentError: there is no such policy, the wanted version is refused, or its bucket cannot be read.
        """
        found = await self._restored(policy)
        if found.following and not await self._take_up(found):
            await self._loader.require_wanted(found)

    async def _take_up(self, policy: PolicyDecisions) -> bool:
        """Make the most wanted version live that is better than the live one and passes every check. False: none is."""
        source = policy.source
        version = await self._loader.load_wanted(policy)
        if version is None:
            if policy.source is source:  # otherwise a new rule has come, and the next poll takes up what it wants
                policy.has_new_rule = policy.has_new_rule and policy.retry_in > source.pause_polls
            return False
        surplus = list[int]()
        async with policy.changing, self._loader.listed(policy, version):
            # An operator may have decided meanwhile, or a new rule may have come.
            if policy.source is source and (policy.following or policy.has_new_rule):
                surplus = await self._live_versions.make_live(policy, version, following=policy.following)
        await self._loader.unload_unused(policy, surplus)
        return True

    def _record(self, report: EpisodeReport, receipt: Receipt) -> None:
        if policy := self._policies.get(report.answered_by.policy):
            self._trials.record(policy, report, receipt)

    async def _decide_canaries(self) -> None:
        while True:
            await self._trials.has_verdict.wait()
            self._trials.has_verdict.clear()
            for policy in self._policies.values():
                try:
                    async with policy.changing:
                        surplus = await self._decide_canary(policy)
                    await self._loader.unload_unused(policy, surplus)
                except Exception:  # a bug must not end the decisions about all policies
                    _LOGGER.exception("ending the canary of %s fails; trying again at its next report", policy.name)

    async def _decide_canary(self, policy: PolicyDecisions) -> list[int]:
        """Promote the candidate of a canary or roll it back, if the reports show which; the lock is held.

        Return the former live versions that are not kept any longer.
        """
        if not policy.canary or policy.canary.verdict is Verdict.UNDECIDED:
            return []
        version, verdict = policy.canary.version, policy.canary.verdict
        _LOGGER.warning("%s: the reports show that version %d is %s", policy.name, version, verdict)
        surplus: list[int] = []
        if verdict is Verdict.BETTER:
            surplus = await self._live_versions.make_live(policy, version, following=False)
            _LOGGER.info("%s: %s", policy.name, policy.unfollowed)
        else:
            await self._live_versions.reject_candidate(policy)
        self._verdicts[policy.name, verdict] += 1
        return surplus

    async def _save(self) -> None:
        """Keep the decisions for the next start. A failure is logged: what is decided holds until then."""
        if self._state_file:
            await self._state_file.save(State({name: policy.state() for name, policy in self._policies.items()}))

    async def _restored(self, policy: str) -> PolicyDecisions:
        """Return a policy, as `_find`, when what was loaded before the restart is loaded."""
        found = self._find(policy)
        await found.restored.wait()
        return found

    def _find(self, policy: str) -> PolicyDecisions:
        if policy not in self._policies:
            known = ", ".join(self._policies)
            raise DeploymentError(Reason.UNKNOWN_POLICY, f"there is no policy {policy!a:.80}; there are: {known}")
        return self._policies[policy]


@contextlib.contextmanager
def _checked() -> Generator[None]:
    """Turn the error for a share that is out of range into one for the caller."""
    try:
        yield
    except ValueError as error:
        raise InvalidRequestError(str(error)) from error
