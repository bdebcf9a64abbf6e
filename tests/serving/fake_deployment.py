"""A deployment that decides as the real one does, and computes nothing."""

import asyncio
import dataclasses
from typing import Any

from serving.errors import DeploymentError, Reason
from serving.policies.deployment import Deployment, PolicyStatus


def policy_status(policy: str, live: int, **changes: Any) -> PolicyStatus:
    """The status of a policy that is followed and has one version, unless changed."""
    fields: dict[str, Any] = {"previous": (), "loaded": (), "following": True, "wanted": "latest", "refused": ()}
    return PolicyStatus(policy, live, **(fields | changes))


class FakeDeployment(Deployment):
    """Serves the policies of `statuses`. Of each, any version up to 9,999 that is not refused is on disk.

    Loading waits for `may_load`, which is set at first.
    """

    def __init__(self, *statuses: PolicyStatus) -> None:
        self.statuses = {status.policy: status for status in statuses}
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.loading = asyncio.Event()
        self.looked = 0
        self.failure: BaseException | None = None

    def status(self) -> tuple[PolicyStatus, ...]:
        return tuple(self.statuses.values())

    async def load(self, policy: str, version: int) -> None:
        if self.failure:
            raise self.failure
        status = self._status_of(policy)
        if version in status.loaded:
            return
        if self.loading.is_set():
            raise DeploymentError(Reason.BUSY, f"a version of {policy} is being loaded")
        if refused := [each for each in status.refused if each.version == version]:
            raise DeploymentError(Reason.VERSION_REFUSED, f"version {version} of {policy}: {refused[0].detail}")
        if version > 9999:
            raise DeploymentError(Reason.UNKNOWN_VERSION, f"policy {policy} has no version {version}")
        self.loading.set()
        await self.may_load.wait()
        self.loading.clear()
        self._change(policy, loaded=tuple(sorted({*status.loaded, version})))

    async def unload(self, policy: str, version: int) -> None:
        status = self._status_of(policy)
        if version == status.live:
            raise DeploymentError(Reason.VERSION_IS_LIVE, f"version {version} of {policy} is live")
        if version not in status.loaded:
            raise DeploymentError(Reason.UNKNOWN_VERSION, f"version {version} of {policy} is not loaded")
        without = {name: tuple(v for v in getattr(status, name) if v != version) for name in ("loaded", "previous")}
        self._change(policy, **without)

    async def switch(self, policy: str, version: int) -> None:
        await self.load(policy, version)
        status = self._status_of(policy)
        previous = (status.live, *(each for each in status.previous if each not in (version, status.live)))
        self._change(policy, live=version, previous=previous, following=False)

    async def rollback(self, policy: str) -> int:
        status = self._status_of(policy)
        if not status.previous:
            raise DeploymentError(Reason.NO_PREVIOUS, f"no version of {policy} was live before")
        live, *previous = status.previous
        self._change(policy, live=live, previous=tuple(previous), following=False)
        return live

    def follow(self, policy: str, *, on: bool) -> None:
        self._status_of(policy)
        self._change(policy, following=on)

    async def look(self) -> None:
        self.looked += 1

    def _status_of(self, policy: str) -> PolicyStatus:
        if policy not in self.statuses:
            raise DeploymentError(Reason.UNKNOWN_POLICY, f"there is no policy {policy}")
        return self.statuses[policy]

    def _change(self, policy: str, **fields: object) -> None:
        self.statuses[policy] = dataclasses.replace(self.statuses[policy], **fields)
