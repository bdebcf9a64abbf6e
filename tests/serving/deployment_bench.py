"""A deployment of one policy, with a host that only records what it is told."""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Generator
from pathlib import Path

import pytest

from serving.errors import DeploymentError, RefusedVersionError, StartupError
from serving.policies.copies import Copies
from serving.policies.deployment import Deployment
from serving.policies.episode_reports import EpisodeReports
from serving.policies.restart import RestartPlan
from serving.policies.state_file import PolicyState, StateFile
from serving.policies.status import PolicyStatus
from serving.policy_settings import Wanted
from tests.serving.sources import policy_source

NAME = "maze"


class RecordingHost:
    """Carries out everything, unless a version is in `refuses` or `lacks`; a version in `held` is loaded later."""

    def __init__(self) -> None:
        self.did: list[tuple[str, int]] = []
        self.refuses: dict[int, str] = {}
        self.lacks: set[int] = set()
        self.held: dict[int, asyncio.Event] = {}
        self.may_switch = asyncio.Event()
        self.may_switch.set()

    async def prepare(self, policy: str, version: int) -> None:
        assert policy == NAME
        self.did.append(("prepare", version))
        if version in self.held:
            await self.held[version].wait()
        if version in self.lacks:
            raise StartupError("cannot load it: too little memory")
        if version in self.refuses:
            raise RefusedVersionError(self.refuses[version], "it is damaged")

    async def switch(self, policy: str, version: int) -> None:
        assert policy == NAME
        self.did.append(("switch", version))
        await self.may_switch.wait()

    async def unload(self, policy: str, version: int) -> None:
        assert policy == NAME
        self.did.append(("unload", version))

    async def set_canary(self, policy: str, version: int, *, share: float) -> None:
        assert policy == NAME
        self.did.append((f"canary {share:g}", version))

    async def set_shadow(self, policy: str, version: int, *, share: float) -> None:
        assert policy == NAME
        self.did.append((f"shadow {share:g}", version))


class Bench:
    """A deployment of one policy, whose version 1 is live at first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host = RecordingHost()
        self.now_s = 100.0
        self.reports = EpisodeReports(clock=lambda: self.now_s)
        self.state_file = StateFile(folder / "state")
        self.publish(1)

    def publish(self, version: int, *, stay: float | None = None) -> None:
        """Make the files of a version that are read here."""
        path = self.folder / "policies" / str(version)
        path.mkdir(parents=True)
        provenance = {} if stay is None else {"metrics": {"eval/stay": stay}}
        description = json.dumps({"spec": {"name": NAME}, "provenance": provenance}).encode()
        (path / "policy.json").write_bytes(description)
        files = {"policy.json": {"sha256": hashlib.sha256(description).hexdigest()}}
        (path / "manifest.json").write_text(json.dumps({"files": files}))

    def start(
        self,
        *,
        wanted: Wanted = "latest",
        follow: bool = True,
        keep: int = 2,
        kept: PolicyState | None = None,
        live: int = 1,
        copies: Copies | None = None,
    ) -> Deployment:
        source = policy_source(self.folder / "policies", name=NAME, wanted=wanted, follow=follow, copies=copies)
        return Deployment(
            [source],
            self.host,
            RestartPlan(self.state_file, {NAME: kept} if kept else {}, choices=((live,),)),
            live={NAME: live},
            keep=keep,
            reports=self.reports,
            clock=lambda: self.now_s,
        )

    def stored(self) -> PolicyState:
        state = self.state_file.read()
        assert state
        return state.policies[NAME]


def status(deployment: Deployment) -> PolicyStatus:
    (only,) = deployment.status()
    return only


@contextlib.contextmanager
def refused(reason: str, match: str | None = None) -> Generator[None]:
    with pytest.raises(DeploymentError, match=match) as caught:
        yield
    assert caught.value.reason == reason
