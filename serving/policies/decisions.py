"""PolicyDecisions: what is decided about one policy."""

import asyncio
import dataclasses
import logging
from typing import Self

from serving.errors import DeploymentError, Reason
from serving.policies.canary import Canary
from serving.policies.source import PolicySource
from serving.policies.state_file import CanaryState, PolicyState, ShadowState, VersionRule
from serving.policies.status import CanaryStatus, PolicyStatus, RefusedVersion, ShadowStatus
from serving.policies.version_files import Files

_LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass
class PolicyDecisions:
    """What is decided about one policy."""

    source: PolicySource
    live: int
    following: bool
    previous: list[int] = dataclasses.field(default_factory=list)  # the most recent first
    also_loaded: set[int] = dataclasses.field(default_factory=set)  # by an operator, or left by a rollback
    rolled_back: set[int] = dataclasses.field(default_factory=set)  # not taken up by following, unless live since
    refused: dict[int, tuple[Files, RefusedVersion]] = dataclasses.field(default_factory=dict)
    canary: Canary | None = None
    shadow: ShadowState | None = None
    retry_in: int = 0  # polls
    has_new_rule: bool = False  # what it wants is taken up once, whether it is followed or not
    changing: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)
    to_restore: PolicyState | None = None  # what was decided before the restart, until its versions are loaded
    restored: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)  # operators' actions wait for it

    @classmethod
    def first(cls, source: PolicySource, live: int, kept: PolicyState | None) -> Self:
        """Return the decisions at the start, when only the live version is loaded.

        Args:
            source: the policy.
            live: its live version.
            kept: what was decided before the restart; None: nothing that still holds.
        """
        if kept is None:
            policy = cls(source, live, following=source.follow)
            policy.restored.set()
            return policy
        if live != kept.live:
            _LOGGER.warning(
                "version %d of %s, which was live before the restart, cannot be served; version %d is, and is not"
                " followed",
                kept.live,
                source.name,
                live,
            )
        return cls(
            source,
            live,
            following=kept.following and live == kept.live,
            rolled_back=set(kept.rolled_back),
            to_restore=kept,
        )

    def take_rule(self, source: PolicySource) -> None:
        """Take the --versions and --follow of `source`, if they have changed."""
        if (source.wanted, source.follow) == (self.source.wanted, self.source.follow):
            return
        self.source = dataclasses.replace(self.source, wanted=source.wanted, follow=source.follow)
        self.following, self.has_new_rule = source.follow, True
        if isinstance(source.wanted, int):  # an operator names it, as with switch
            self.rolled_back.discard(source.wanted)
        how = "followed" if source.follow else "not followed"
        _LOGGER.info("%s: the version %s is wanted now, and the policy is %s", self.name, source.wanted, how)

    def require_following_possible(self, *, on: bool) -> None:
        """Check that following can be turned on or off now.

        Raises:
            DeploymentError: there is a canary, one fixed version is wanted, or versions are still being loaded after a
                restart.
        """
        if not self.restored.is_set():
            raise DeploymentError(
                Reason.BUSY, f"the versions of {self.name} are still being loaded after the restart; try again later"
            )
        if on and self.canary:
            raise DeploymentError(
                Reason.BUSY,
                f"{self.name} has a canary of version {self.canary.version}, and is not followed meanwhile; first end"
                " it with canary --off or rollback, or make a version live with switch",
            )
        if on and isinstance(self.source.wanted, int):
            raise DeploymentError(
                Reason.FIXED_VERSION,
                f"version {self.source.wanted} of {self.name} is wanted by --versions, so there is none to follow",
            )

    def forget(self, version: int) -> None:
        """Note that a version, which is not live, is not loaded any more."""
        self.also_loaded.discard(version)
        self.previous = [each for each in self.previous if each != version]
        if self.canary and self.canary.version == version:
            self.canary = None
        if self.shadow and self.shadow.version == version:
            self.shadow = None

    @property
    def name(self) -> str:
        """The policy as clients name it."""
        return self.source.name

    @property
    def unfollowed(self) -> str:
        """What it means that the policy is not followed any more, for the log."""
        until = "" if isinstance(self.source.wanted, int) else " until kilolayer-admin follow"
        return f"new versions are not taken up{until}"

    @property
    def on_trial(self) -> dict[int, str]:
        """The versions of the canary and the shadow, with what they are."""
        canary, shadow = self.canary, self.shadow  # read once, since metrics are collected in another thread
        return ({canary.version: "the candidate of a canary"} if canary else {}) | (
            {shadow.version: "a shadow"} if shadow else {}
        )

    @property
    def loaded(self) -> set[int]:
        """Every version that answers requests."""
        return {self.live, *self.previous, *self.also_loaded, *self.on_trial}

    def state(self) -> PolicyState:
        """Return what is kept for the next start."""
        canary = self.canary
        now = PolicyState(
            VersionRule(str(self.source.wanted), self.source.follow),
            self.live,
            tuple(self.previous),
            self.following,
            tuple(sorted(self.rolled_back)),
            CanaryState(canary.version, canary.share, canary.rule) if canary else None,
            self.shadow,
        )
        if not (kept := self.to_restore):
            return now
        previous = tuple(version for version in kept.previous if version != self.live)
        return dataclasses.replace(
            now, previous=previous, canary=now.canary or kept.canary, shadow=now.shadow or kept.shadow
        )

    def status(self) -> PolicyStatus:
        """Return the status. May be called in any thread."""
        # Read once, since metrics are collected in another thread; what is tried now before what is restored.
        canary, shadow, kept = self.canary, self.shadow, self.to_restore
        return PolicyStatus(
            self.name,
            self.live,
            tuple(self.previous),
            tuple(sorted(self.loaded)),
            self.following,
            str(self.source.wanted),
            tuple(about for _, (_, about) in sorted(self.refused.items())),
            _canary_status(canary) if canary else kept and _loading_canary(kept),
            ShadowStatus(shadow.version, shadow.share) if shadow else kept and _loading_shadow(kept),
            tuple(sorted(self.rolled_back)),
        )


def _loading_canary(kept: PolicyState) -> CanaryStatus | None:
    canary = kept.canary
    return canary and CanaryStatus(canary.version, canary.share, canary.rule, loading=True)


def _loading_shadow(kept: PolicyState) -> ShadowStatus | None:
    return kept.shadow and ShadowStatus(kept.shadow.version, kept.shadow.share, loading=True)


def _canary_status(canary: Canary) -> CanaryStatus:
    status = CanaryStatus(canary.version, canary.share, canary.rule)
    if canary.test is None:
        return status
    return dataclasses.replace(
        status,
        live_episodes=canary.test.episodes(is_candidate=False),
        candidate_episodes=canary.test.episodes(is_candidate=True),
        **canary.test.evidence._asdict(),
    )
