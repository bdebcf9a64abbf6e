"""PolicyRegistry: the policies that are served, by name and version."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

from policy.bundle import Bundle
from serving.batching.batcher import Batcher
from serving.batching.scheduler import Rejection
from serving.errors import NotReadyError, UnknownPolicyError, UnknownVersionError, echo
from serving.policies.seen_range import SeenRange
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


class PolicyRegistry:
    """The policies that are served; none before `open`.

    One version of a policy is live: it answers requests that name no version. Others may be loaded besides, and answer
    requests that name them. Everything here happens on the event loop, so a request finds one version or the other.

    Args:
        names: of the policies that will be served.
        default: the policy for requests that name none.
    """

    def __init__(self, names: frozenset[str], *, default: str) -> None:
        self._names = names
        self.default = default
        self._live: dict[str, ServedPolicy] = {}
        self._loaded: dict[str, dict[str, ServedPolicy]] = {}  # by policy and version; the live ones, too

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

    def remove(self, policy: str, version: str) -> ServedPolicy:
        """Answer no more requests that name this version, which must not be live."""
        assert self._live[policy].version != version
        return self._loaded[policy].pop(version)

    def live(self) -> Mapping[str, ServedPolicy]:
        """Return the live version of every policy, by name.

        Raises:
            NotReadyError: `open` was not called yet.
        """
        if not self._live:
            raise NotReadyError("the server is still compiling; wait until its health is SERVING")
        return self._live

    def loaded(self, policy: str) -> Sequence[ServedPolicy]:
        """Return every version of a policy that answers requests, oldest first."""
        return sorted(self._loaded[policy].values(), key=lambda served: served.bundle.version)

    def all_loaded(self) -> Sequence[ServedPolicy]:
        """Return every version of every policy."""
        return [served for versions in self._loaded.values() for served in versions.values()]

    def find(self, policy: str, *, version: str) -> ServedPolicy:
        """Return the policy that a request names. Empty names mean the default policy and its live version.

        Raises:
            NotReadyError: `open` was not called yet.
            NotFoundError: there is no policy or version of that name.
        """
        live = self.live()
        served = live.get(policy or self.default)
        if served is None:
            raise UnknownPolicyError(f"there is no policy {echo(policy)}; there are: {', '.join(sorted(live))}")
        if not version or version == served.version:
            return served
        other = self._loaded[served.name].get(version)
        if other is None:
            versions = ", ".join(each.version for each in self.loaded(served.name))
            raise UnknownVersionError(f"policy {served.name} has no version {echo(version)}; there are: {versions}")
        return other

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
