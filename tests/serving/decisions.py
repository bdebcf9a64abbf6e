"""A real deployment whose versions are files without content, with a host that computes nothing."""

import asyncio
from pathlib import Path

from serving.errors import DeploymentError, RefusedVersionError
from serving.policies.deployment import Deployment
from serving.policies.episode_reports import EpisodeReports
from serving.policies.restart import RestartPlan
from serving.policies.source import PolicySource
from serving.policies.state_file import PolicyState, VersionRule

DAMAGE = "params/x has changed since it was written"


class FakeHost:
    """Carries out everything, but refuses version 3000. Loading waits for `may_load`, which is set at first."""

    def __init__(self) -> None:
        self.loading = asyncio.Event()
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.failure: BaseException | None = None

    async def prepare(self, policy: str, version: int) -> None:
        self.loading.set()
        await self.may_load.wait()
        if self.failure:
            raise self.failure
        if version == 3000:
            raise RefusedVersionError("hash", DAMAGE)

    async def switch(self, policy: str, version: int) -> None:
        pass

    async def unload(self, policy: str, version: int) -> None:
        pass

    async def set_canary(self, policy: str, version: int, *, share: float) -> None:
        pass

    async def set_shadow(self, policy: str, version: int, *, share: float) -> None:
        pass


class Decisions:
    """The deployment of two policies, or of one.

    Of ant, version 2000 is live, 1000 was live before, 2500 and 3000 are on disk, and 3000 was refused. It follows the
    latest version. Of bee, version 7 is live and wanted, and 8 is on disk.
    """

    def __init__(self, folder: Path, *policies: str) -> None:
        self.folder = folder
        self.host = FakeHost()
        versions = {"ant": (1000, 2000), "bee": (7, 8)}
        for policy in policies:
            for version in versions[policy]:
                self.publish(policy, version)
        ant = PolicyState(VersionRule("latest", follow=True), 2000, previous=(1000,), following=True)
        self.deployment = Deployment(
            [self._source(policy) for policy in policies],
            self.host,
            RestartPlan(None, {"ant": ant}, choices=((2000,), (7,))),
            live={"ant": 2000, "bee": 7},
            keep=2,
            reports=EpisodeReports(),
        )

    async def restore(self) -> None:
        """Load what was live before."""
        await self.deployment.restore()
        self.host.loading.clear()

    async def publish_more_of_ant(self) -> None:
        """Publish the versions that are not loaded, and let the deployment refuse the damaged one."""
        await self.restore()
        self.publish("ant", 2500)
        self.publish("ant", 3000)
        try:
            await self.deployment.load("ant", 3000)
        except DeploymentError:
            self.host.loading.clear()
        else:
            raise AssertionError("the host refuses it")

    def publish(self, policy: str, version: int) -> None:
        """Make the only file of a version that is read here."""
        folder = self.folder / policy / str(version)
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")

    def live(self, policy: str) -> int:
        return next(status.live for status in self.deployment.status() if status.policy == policy)

    def loaded(self, policy: str) -> tuple[int, ...]:
        return next(status.loaded for status in self.deployment.status() if status.policy == policy)

    def _source(self, policy: str) -> PolicySource:
        return PolicySource(
            name=policy,
            folder=self.folder / policy,
            given=self.folder / policy,
            wanted="latest" if policy == "ant" else 7,
            follow=policy == "ant",
            max_batch_rows=1,
            max_batch_delay_s=0.0,
            max_queue_rows=1,
        )
