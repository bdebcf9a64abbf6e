"""What the admin services need of the deployment, which decides the versions that a server serves."""

from collections.abc import Sequence
from typing import Protocol


class RefusedVersion(Protocol):
    """A version on disk that failed a check, and is not tried again until its files change."""

    @property
    def version(self) -> int:
        """The version."""
        ...

    @property
    def reason(self) -> str:
        """Which check failed, in one word."""
        ...

    @property
    def detail(self) -> str:
        """The details, for people."""
        ...


class PolicyStatus(Protocol):
    """The versions of one policy."""

    @property
    def policy(self) -> str:
        """The name that clients use."""
        ...

    @property
    def live(self) -> int:
        """The version that answers requests that name none."""
        ...

    @property
    def previous(self) -> tuple[int, ...]:
        """Versions that were live before and are still loaded, the most recent first."""
        ...

    @property
    def loaded(self) -> tuple[int, ...]:
        """Every version that answers requests, oldest first."""
        ...

    @property
    def following(self) -> bool:
        """Whether new versions are taken up."""
        ...

    @property
    def wanted(self) -> str:
        """The rule for new versions: latest, best, or a version."""
        ...

    @property
    def refused(self) -> Sequence[RefusedVersion]:
        """Versions on disk that are not served."""
        ...


class Deployment(Protocol):
    """Decides which versions a server serves. A change that is refused raises a DeploymentError."""

    def status(self) -> Sequence[PolicyStatus]:
        """Return the versions of every policy."""
        ...

    async def load(self, policy: str, version: int) -> None:
        """Let a version answer requests that name it."""
        ...

    async def unload(self, policy: str, version: int) -> None:
        """Unload a version that is not live."""
        ...

    async def switch(self, policy: str, version: int) -> None:
        """Make a version live, and load it first if needed. Turns following off."""
        ...

    async def rollback(self, policy: str) -> int:
        """Make the version live that was live before, and return it. Turns following off."""
        ...

    def follow(self, policy: str, on: bool) -> None:
        """Turn following on or off."""
        ...

    async def look(self) -> None:
        """Look for new versions now, and take up those of policies that are followed."""
        ...
