"""PolicyRegistry: the policies that are served, by name and version."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

from policy.bundle import Bundle
from serving.batching.batcher import Batcher
from serving.batching.scheduler import Rejection
from serving.errors import NotReadyError, UnknownPolicyError, UnknownVersionError, echo
from serving.policies.canary import CanaryShare
from serving.policies.episode_reports import PolicyVersion
from serving.policies.seen_range import SeenRange
from serving.policies.shadow import Shadow
from serving.telemetry.metrics import UNKNOWN_POLICY


@dataclasses.dataclass(frozen=True)
class ServedPolicy:
    """One version of a policy that is served."""

    bundle: Bundle
    batcher: Batcher
    seen_range: SeenRange  # of the states that it saw in training

    @property
    def name(self) -> str:
        """The policy as clients name it."""
        return self.bundle.spec.name

    @functools.cached_property
    def version(self) -> str:
        """The version as clients name it."""
        return str(self.bundle.version)

    @functools.cached_property
    def policy_version(self) -> PolicyVersion:
        """The policy and the version."""
        return PolicyVersion(self.name, self.bundle.version)


class PolicyRegistry:
    """The policies that are served; none before `open`.

    One version of a policy is live: it answers requests that name no version. Other loaded versions answer requests
    that name them. During a canary, one of these is the candidate: it answers a share of the robots that name
    no version. Everything here happens on the event loop, so a request finds one version or the other.

    Args:
        names: of the policies that will be served.
        default: the policy for requests that name none.
    """

    def __init__(self, names: frozenset[str], *, default: str) -> None:
        self._names = names
        self.default = default
        self._live: dict[str, ServedPolicy] = {}
        self._loaded: dict[str, dict[str, ServedPolicy]] = {}  # by policy and version; the live ones, too
        self._canaries: dict[str, CanaryShare] = {}
        self._shadows: dict[str, Shadow] = {}

    def open(self, served: Iterable[ServedPolicy]) -> None:
        """Serve these live versions, one of each policy, from now on."""
        for policy in served:
            self.add(policy)
            self._live[policy.name] = policy

    def add(self, served: ServedPolicy) -> None:
        """Answer requests that name this version."""
        self._loaded.setdefault(served.name, {})[served.version] = served

    def switch(self, policy: str, version: str) -> None:
        """Make a loaded version live. Requests that were admitted before keep theirs."""
        self._live[policy] = self._loaded[policy][version]

    def set_canary(self, policy: str, share: CanaryShare | None) -> None:
        """Answer a share of the robots with a candidate, which is loaded; None: answer all with the live version."""
        if share:
            self._canaries[policy] = share
        else:
            self._canaries.pop(policy, None)

    def set_shadow(self, policy: str, shadow: Shadow | None) -> None:
        """Compare the live version's answers with a shadow; None: with none."""
        if shadow:
            self._shadows[policy] = shadow
        else:
            self._shadows.pop(policy, None)

    def shadow(self, served: ServedPolicy) -> Shadow | None:
        """Return what the answers of this version are compared with; None: nothing."""
        shadow = self._shadows.get(served.name)
        return shadow if shadow and self._live[served.name] is served else None

    def remove(self, policy: str, version: str) -> ServedPolicy:
        """Answer no more requests that name this version, which must be neither live nor a candidate."""
        assert self._live[policy].version != version
        return self._loaded[policy].pop(version)

    def live(self) -> Mapping[str, ServedPolicy]:
        """Return the live version of every policy, by name.

        Raises:
            NotReadyError: `open` was not called yet.
        """
        if not self._live:
            raise NotReadyError("the server is still compiling its policies")
        return self._live

    def loaded(self, policy: str) -> Sequence[ServedPolicy]:
        """Return every version of a policy that answers requests, oldest first."""
        return sorted(self._loaded[policy].values(), key=lambda served: served.bundle.version)

    def all_loaded(self) -> Sequence[ServedPolicy]:
        """Return every version of every policy."""
        return [served for versions in self._loaded.values() for served in versions.values()]

    def find(self, policy: str, *, version: str, robot: str = "") -> ServedPolicy:
        """Return the policy that a request names.

        An empty policy means the default one. An empty version means the live one, or the candidate of a canary.

        Args:
            robot: what a canary goes by, the robot's id or a name of its stream or connection; empty: the live version.

        Raises:
            NotReadyError: `open` was not called yet.
            NotFoundError: there is no policy or version of that name.
        """
        live = self.live()
        served = live.get(policy or self.default)
        if served is None:
            raise UnknownPolicyError(f"there is no policy {echo(policy)}; there are: {', '.join(sorted(live))}")
        if not version:
            return self._candidate(served.name, robot) or served
        if version == served.version:
            return served
        other = self._loaded[served.name].get(version)
        if other is None:
            versions = ", ".join(each.version for each in self.loaded(served.name))
            raise UnknownVersionError(f"policy {served.name} has no version {echo(version)}; there are: {versions}")
        return other

    def _candidate(self, policy: str, robot: str) -> ServedPolicy | None:
        """Return the candidate that `robot` gets; None: the live version, also if the candidate is not loaded."""
        canary = self._canaries.get(policy)
        if not canary or not robot or not canary.gets_candidate(robot):
            return None
        return self._loaded[policy].get(str(canary.candidate))

    def is_overloaded(self) -> bool:
        """Return whether every policy is overloaded, so that calls are checked before they are read."""
        return bool(self._live) and all(served.batcher.is_overloaded for served in self._live.values())

    def reject_unread(self, deadline_s: float, *, connection: str = "") -> Rejection | None:
        """Return why a call that arrives now is rejected, regardless of its content; None: read it.

        Args:
            deadline_s: on the server's clock; infinite: none.
            connection: over which it comes.
        """
        rejection = None
        for served in self._live.values():
            rejection = served.batcher.reject_unread(deadline_s, connection=connection)
            if rejection is None:
                return None
        return rejection

    def label(self, policy: str) -> str:
        """Return the policy that a request names, as a metric label. Unknown names never become labels."""
        name = policy or self.default
        return name if name in self._names else UNKNOWN_POLICY
