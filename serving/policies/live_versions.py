"""LiveVersions: makes a version of a policy live, rolls back to the former one, and rejects the candidate of a canary.

`serving.policies.deployment` decides; it holds the lock of a policy while it calls these methods.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from serving.errors import DeploymentError, Reason, StartupError
from serving.policies.decisions import PolicyDecisions
from serving.policies.loading import VersionLoader
from serving.policies.status import Rollback
from serving.policies.trials import Trials

_LOGGER = logging.getLogger(__name__)


class SwitchingHost(Protocol):
    """Carries out switches."""

    async def switch(self, policy: str, version: int) -> None:
        """Make a loaded version live."""
        ...


class LiveVersions:
    """Changes the live versions of all policies.

    Args:
        host: carries it out.
        loader: keeps former live versions loaded.
        trials: end when their version becomes live.
        save: keeps what is decided for the next start.
    """

    def __init__(
        self, host: SwitchingHost, loader: VersionLoader, trials: Trials, *, save: Callable[[], Awaitable[None]]
    ) -> None:
        self._host = host
        self._loader = loader
        self._trials = trials
        self._save = save

    async def make_live(self, policy: PolicyDecisions, version: int, *, following: bool) -> list[int]:
        """Make a loaded version live. Return the former ones that are not kept any longer.

        Raises:
            DeploymentError: a worker failed.
        """
        name, former = policy.name, policy.live
        if version != former:
            await self._switch(name, version)  # first: if it fails, nothing is decided
            policy.live = version
            policy.previous = [former, *(each for each in policy.previous if each != version)]
            policy.also_loaded.discard(version)
            _LOGGER.info("%s: version %d is live in place of version %d", name, version, former)
        policy.following, policy.has_new_rule = following, False
        policy.rolled_back.discard(version)
        try:
            ended = await self._trials.end_canary(policy)
            if ended is not None and ended != version:
                policy.also_loaded.add(ended)
            await self._trials.end_shadow_of(policy, version)
            return self._loader.forget_surplus(policy)
        finally:
            await self._save()

    async def roll_back(self, policy: PolicyDecisions) -> Rollback:
        """End the canary, or make the former live version live again. The policy is not followed any more.

        Raises:
            DeploymentError: no former version is loaded, or a worker failed.
        """
        if policy.canary:
            return Rollback(policy.live, await self.reject_candidate(policy), ended_canary=True)
        if not policy.previous:
            raise DeploymentError(
                Reason.NO_PREVIOUS, f"no former live version of {policy.name} is loaded; switch to a version"
            )
        left, version = policy.live, policy.previous[0]
        await self._switch(policy.name, version)
        policy.live, policy.previous = version, policy.previous[1:]
        policy.also_loaded.discard(version)
        policy.also_loaded.add(left)
        policy.rolled_back = policy.rolled_back - {version} | {left}
        policy.following = policy.has_new_rule = False
        _LOGGER.warning("%s is rolled back from version %d to %d; %s", policy.name, left, version, policy.unfollowed)
        try:
            await self._trials.end_shadow_of(policy, version)
        finally:
            await self._save()
        return Rollback(version, left, ended_canary=False)

    async def reject_candidate(self, policy: PolicyDecisions) -> int:
        """Roll a canary back. Return its version, which stays loaded. Errors as of `Trials.end_canary`."""
        candidate = await self._trials.end_canary(policy)
        assert candidate is not None
        policy.also_loaded.add(candidate)
        policy.rolled_back.add(candidate)
        policy.following = False
        names = policy.name, candidate, policy.live, policy.unfollowed
        _LOGGER.warning("%s: version %d is rolled back, and version %d stays live; %s", *names)
        await self._save()
        return candidate

    async def _switch(self, policy: str, version: int) -> None:
        try:
            await self._host.switch(policy, version)
        except StartupError as error:
            raise DeploymentError(Reason.BUSY, f"version {version} of {policy} is not made live: {error}") from error
