"""PolicyRegistry: the policies that are served, by name and version."""

import dataclasses
from collections.abc import Mapping

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
    def version(self) -> str:
        """The version as clients name it."""
        return str(self.bundle.version)


class PolicyRegistry:
    """The policies that are served; none before `open`.

    Args:
        names: of the policies that will be served.
        default: the policy for requests that name none.
    """

    def __init__(self, names: frozenset[str], *, default: str) -> None:
        self._names = names
        self.default = default
        self._served: Mapping[str, ServedPolicy] = {}

    def open(self, served: Mapping[str, ServedPolicy]) -> None:
        """Serve these policies, by name, from now on."""
        self._served = served

    def all(self) -> Mapping[str, ServedPolicy]:
        """Return every policy that is served, by name.

        Raises:
            NotReadyError: `open` was not called yet.
        """
        if not self._served:
            raise NotReadyError("the server is still compiling; wait until its health is SERVING")
        return self._served

    def find(self, policy: str, *, version: str) -> ServedPolicy:
        """Return the policy that a request names. Empty names mean the default policy and its live version.

        Raises:
            NotReadyError: `open` was not called yet.
            NotFoundError: there is no policy or version of that name.
        """
        all_served = self.all()
        served = all_served.get(policy or self.default)
        if served is None:
            raise UnknownPolicyError(f"there is no policy {echo(policy)}; there are: {', '.join(sorted(all_served))}")
        if version not in ("", served.version):
            name = served.bundle.spec.name
            raise UnknownVersionError(f"policy {name} has no version {echo(version)}; there are: {served.version}")
        return served

    def is_overloaded(self) -> bool:
        """Return whether every policy is overloaded, so that calls are checked before they are read."""
        return bool(self._served) and all(served.batcher.is_overloaded for served in self._served.values())

    def reject_unread(self, deadline_s: float, *, connection: str = "") -> Rejection | None:
        """Return why a call that arrives now is rejected, regardless of its content; None: read it.

        Args:
            deadline_s: on the server's clock; infinite: none.
            connection: over which it comes.
        """
        rejection = None
        for served in self._served.values():
            rejection = served.batcher.reject_unread(deadline_s, connection=connection)
            if rejection is None:
                return None
        return rejection

    def label(self, policy: str) -> str:
        """Return the policy that a request names, as a metric label. Unknown names never become labels."""
        name = policy or self.default
        return name if name in self._names else UNKNOWN_POLICY
