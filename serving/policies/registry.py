"""PolicyRegistry: which policies answer calls, by name and version."""

import dataclasses
from collections.abc import Mapping

from policy.bundle import Bundle
from serving.batching.batcher import Batcher
from serving.errors import NotFoundError, UnavailableError, echo
from serving.telemetry.metrics import UNKNOWN_POLICY


@dataclasses.dataclass(frozen=True)
class ServedPolicy:
    """One version of a policy that answers calls."""

    bundle: Bundle
    batcher: Batcher

    @property
    def version(self) -> str:
        """As clients name it."""
        return str(self.bundle.version)


class PolicyRegistry:
    """What is on offer; nothing until `open`.

    Args:
        policies: names of the policies that will be offered.
        default: the one of them that answers calls which name none.
    """

    def __init__(self, policies: frozenset[str], *, default: str) -> None:
        self._policies = policies
        self.default = default
        self._offers: Mapping[str, ServedPolicy] = {}

    def open(self, offers: Mapping[str, ServedPolicy]) -> None:
        """From now on these are on offer, by policy."""
        self._offers = offers

    def all(self) -> Mapping[str, ServedPolicy]:
        """Everything on offer.

        Raises:
            UnavailableError: nothing is yet.
        """
        if not self._offers:
            raise UnavailableError("the server is still compiling; wait until its health says SERVING")
        return self._offers

    def find(self, policy: str, *, version: str) -> ServedPolicy:
        """The offer that a request means; empty names mean the default policy and the live version.

        Raises:
            UnavailableError: nothing is on offer yet.
            NotFoundError: no policy or version of that name.
        """
        offers = self.all()
        offer = offers.get(policy or self.default)
        if offer is None:
            raise NotFoundError(f"there is no policy {echo(policy)}; there are: {', '.join(sorted(offers))}")
        if version not in ("", offer.version):
            name = offer.bundle.spec.name
            raise NotFoundError(f"policy {name} has no version {echo(version)}; there are: {offer.version}")
        return offer

    def label(self, policy: str) -> str:
        """The policy that a request means, as a metric label: names that clients make up never become one."""
        name = policy or self.default
        return name if name in self._policies else UNKNOWN_POLICY
