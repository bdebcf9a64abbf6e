"""Trials: begins and ends the canaries and shadows of policies, and counts the reports that a canary compares.

`serving.policies.deployment` decides; it holds the lock of a policy while it calls these methods.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from serving.errors import DeploymentError, Reason, StartupError
from serving.policies.canary import Canary, CanaryShare
from serving.policies.decisions import PolicyDecisions
from serving.policies.episode_reports import EpisodeReport, Receipt
from serving.policies.sequential_test import DecisionRule, Verdict
from serving.policies.state_file import ShadowState

_LOGGER = logging.getLogger(__name__)


class TrialHost(Protocol):
    """Carries out trials."""

    async def set_canary(self, policy: str, version: int, *, share: float) -> None:
        """Answer a share of the robots with a loaded version; with a share of 0, all of them with the live one."""
        ...

    async def set_shadow(self, policy: str, version: int, *, share: float) -> None:
        """Compare a share of the live version's rows with a loaded version; with a share of 0, none of them."""
        ...


class Trials:
    """The trials of all policies.

    Args:
        host: carries them out.
        clock: monotonic seconds.
    """

    def __init__(self, host: TrialHost, *, clock: Callable[[], float]) -> None:
        self._host = host
        self._clock = clock
        self.has_verdict = asyncio.Event()
        """Set when the reports show which version of a canary is better."""

    async def begin_canary(
        self, policy: PolicyDecisions, assignment: CanaryShare, *, rule: DecisionRule | None
    ) -> int | None:
        """Answer a share of the robots with a loaded version. Return the version of the canary that this one replaces.

        With the version and the rule of the present canary, only its share changes, and what reports show is kept.

        Raises:
            DeploymentError: the version is live, or a worker failed.
        """
        version, share = assignment.candidate, assignment.share
        _require_not_live(policy, version)
        before = policy.canary
        await self._set_canary(policy, version, share=share)
        now_s = self._clock()  # episodes that began before the workers had the share are not compared
        if before and (before.version, before.rule) == (version, rule):
            before.change_share(share, now_s=now_s)
        else:
            policy.canary = Canary(assignment, rule=rule, now_s=now_s)
        _LOGGER.info("%s: version %d answers %g of the robots, as a canary", policy.name, version, share)
        return before and before.version

    async def end_canary(self, policy: PolicyDecisions) -> int | None:
        """Answer all robots with the live version. Return the version of the canary; None: there was none.

        Raises:
            DeploymentError: a worker failed.
        """
        if not policy.canary:
            return None
        version = policy.canary.version
        await self._set_canary(policy, version, share=0)
        policy.canary = None
        _LOGGER.info("%s: the canary of version %d has ended", policy.name, version)
        return version

    async def begin_shadow(self, policy: PolicyDecisions, shadow: ShadowState) -> int | None:
        """Compare a share of the live version's rows with a loaded version. Return the shadow that it replaces.

        Raises:
            DeploymentError: the version is live, or a worker failed.
        """
        _require_not_live(policy, shadow.version)
        before = policy.shadow
        await self._set_shadow(policy, shadow.version, share=shadow.share)
        policy.shadow = shadow
        _LOGGER.info("%s: version %d is a shadow of %g of the rows", policy.name, shadow.version, shadow.share)
        return before and before.version

    async def end_shadow(self, policy: PolicyDecisions) -> int | None:
        """Compare no more rows. Return the version of the shadow; None: there was none. Errors as of `end_canary`."""
        if not policy.shadow:
            return None
        version = policy.shadow.version
        await self._set_shadow(policy, version, share=0)
        policy.shadow = None
        _LOGGER.info("%s: the shadow of version %d has ended", policy.name, version)
        return version

    async def end_shadow_of(self, policy: PolicyDecisions, live: int) -> None:
        """End the shadow if its version has become live. Errors as of `end_canary`."""
        if policy.shadow and policy.shadow.version == live:
            await self.end_shadow(policy)

    async def _set_canary(self, policy: PolicyDecisions, version: int, *, share: float) -> None:
        try:
            await self._host.set_canary(policy.name, version, share=share)
        except StartupError as error:
            raise DeploymentError(Reason.BUSY, f"the canary of {policy.name} stays as it is: {error}") from error

    async def _set_shadow(self, policy: PolicyDecisions, version: int, *, share: float) -> None:
        try:
            await self._host.set_shadow(policy.name, version, share=share)
        except StartupError as error:
            raise DeploymentError(Reason.BUSY, f"the shadow of {policy.name} stays as it is: {error}") from error

    def record(self, policy: PolicyDecisions, report: EpisodeReport, receipt: Receipt) -> None:
        """Take a report about `policy` into account."""
        canary = policy.canary
        if canary and canary.record(report, receipt, live=policy.live) is not Verdict.UNDECIDED:
            self.has_verdict.set()


def _require_not_live(policy: PolicyDecisions, version: int) -> None:
    if version == policy.live:
        raise DeploymentError(
            Reason.VERSION_IS_LIVE, f"version {version} of {policy.name} is live; choose another one to try"
        )
