"""Deployment: decides which version of each policy is live, and which others stay loaded.

A policy that is followed takes up what its --versions rule wants, as soon as it is published. An operator may load,
switch and roll back; a switch or a rollback ends the following, so that nothing undoes it. Every version is loaded and
checked before anything changes for robots. One that fails a check is refused, counted, and not looked at again until
its files change; the live version goes on.

The decisions are carried out by a `VersionHost`: this process, or all workers. Imports no JAX, because the supervisor
of several workers uses it. Everything runs on one event loop.
"""

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Protocol

from serving.errors import DeploymentError, Reason, RefusedVersionError, StartupError
from serving.policies import version_files
from serving.policies.restart import Restart
from serving.policies.source import PolicySource, candidates
from serving.policies.state_file import PolicyState, Rule, State
from serving.policies.status import PolicyStatus, RefusedVersion
from serving.policies.version_files import Files

_LOGGER = logging.getLogger(__name__)

LOOK_S = 1.0
"""How often the folders are looked at."""
_RETRY_LOOKS = 30  # after the machine lacked something that loading needs


class VersionHost(Protocol):
    """Carries out decisions; see `serving.policies.host.PolicyHost`."""

    async def prepare(self, policy: str, version: int) -> None:
        """Load a version. Raises RefusedVersionError, or StartupError if the machine lacks what loading needs."""
        ...

    async def switch(self, policy: str, version: int) -> None:
        """Make a loaded version live."""
        ...

    async def unload(self, policy: str, version: int) -> None:
        """Unload a version that is not live."""
        ...


@dataclasses.dataclass
class _Policy:
    source: PolicySource
    live: int
    following: bool
    previous: list[int] = dataclasses.field(default_factory=list)  # the most recent first
    also_loaded: set[int] = dataclasses.field(default_factory=set)  # by an operator, or left by a rollback
    rolled_back: set[int] = dataclasses.field(default_factory=set)  # never taken up again by following
    refused: dict[int, tuple[Files, RefusedVersion]] = dataclasses.field(default_factory=dict)
    retry_in: int = 0  # looks
    changing: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)

    @property
    def loaded(self) -> set[int]:
        return {self.live, *self.previous, *self.also_loaded}


class Deployment:
    """The decisions about all policies of a server.

    Args:
        sources: the policies.
        host: carries out the decisions; it has loaded the live versions.
        began: what was decided before the restart, and where decisions are kept.
        live: the live version of each policy.
        keep: how many former live versions of a policy stay loaded.
    """

    def __init__(
        self,
        sources: Sequence[PolicySource],
        host: VersionHost,
        began: Restart,
        *,
        live: Mapping[str, int],
        keep: int,
    ) -> None:
        self._host = host
        self._keep = keep
        self._state_file = began.state_file
        self._policies = {
            source.name: _first(source, live[source.name], began.kept.get(source.name)) for source in sources
        }
        self._look_now = asyncio.Event()

    def status(self) -> tuple[PolicyStatus, ...]:
        """Return what is decided about every policy."""
        return tuple(_status(policy) for policy in self._policies.values())

    async def load(self, policy: str, version: int) -> None:
        """Load a version, so that requests that name it are answered.

        Raises:
            DeploymentError: there is no such policy or version, or the version is refused.
        """
        found = self._find(policy)
        await self._prepare(found, version)
        if version not in found.loaded:
            found.also_loaded.add(version)

    async def unload(self, policy: str, version: int) -> None:
        """Unload a version that is not live.

        Raises:
            DeploymentError: there is no such policy or loaded version, or the version is live.
        """
        found = self._find(policy)
        async with found.changing:
            if version == found.live:
                raise DeploymentError(
                    Reason.VERSION_IS_LIVE, f"version {version} of {policy} is live; switch to another one"
                )
            if version not in found.loaded:
                raise _unknown_version(found, version)
            found.also_loaded.discard(version)
            found.previous = [each for each in found.previous if each != version]
            self._save()
        await self._host.unload(policy, version)

    async def switch(self, policy: str, version: int) -> None:
        """Make a version live, after loading it if needed. The policy is not followed any more.

        Raises:
            DeploymentError: there is no such policy or version, or the version is refused.
        """
        found = self._find(policy)
        await self._prepare(found, version)
        async with found.changing:
            found.rolled_back.discard(version)
            surplus = await self._make_live(found, version, following=False)
        await self._unload(found, surplus)

    async def rollback(self, policy: str) -> int:
        """Make the former live version live again, and return it. The policy is not followed any more.

        The version is loaded, so this takes milliseconds, even while another version is being loaded.

        Raises:
            DeploymentError: there is no such policy, or no former version is loaded.
        """
        found = self._find(policy)
        async with found.changing:
            if not found.previous:
                raise DeploymentError(
                    Reason.NO_PREVIOUS, f"no former live version of {policy} is loaded; switch to a version"
                )
            left, version = found.live, found.previous[0]
            await self._host.switch(policy, version)
            found.live, found.previous = version, found.previous[1:]
            found.also_loaded.discard(version)
            found.also_loaded.add(left)
            found.rolled_back.add(left)
            found.following = False
            _LOGGER.warning("%s is rolled back from version %d to %d, and not followed any more", policy, left, version)
            self._save()
        return version

    def forget(self, policy: str, version: int) -> None:
        """Note that a version which is not live is not loaded any more."""
        found = self._policies[policy]
        found.also_loaded.discard(version)
        found.previous = [each for each in found.previous if each != version]
        _LOGGER.warning("version %d of %s is not loaded any more; a rollback to it is not possible", version, policy)
        self._save()

    def follow(self, policy: str, *, on: bool) -> None:
        """Take up new versions from now on, or no longer. Versions that were rolled back are not taken up again.

        Raises:
            DeploymentError: there is no such policy, or one fixed version of it is wanted.
        """
        found = self._find(policy)
        if on and isinstance(found.source.wanted, int):
            raise DeploymentError(
                Reason.FIXED_VERSION,
                f"version {found.source.wanted} of {policy} is wanted by --versions, so there is none to follow",
            )
        found.following = on
        found.retry_in = 0
        self._save()
        self._look_now.set()

    def look_now(self) -> None:
        """Look at the folders as soon as possible, also at those that could not be read or loaded."""
        _LOGGER.info("looking at the folders of policies")
        for policy in self._policies.values():
            policy.retry_in = 0
        self._look_now.set()

    async def run(self) -> None:
        """Load what was loaded before the restart; then take up new versions, every second. Does not return."""
        for policy in self._policies.values():
            await self._restore(policy)
            await asyncio.to_thread(policy.source.sweep, policy.loaded)
        self._save()
        while True:
            await self.look()
            self._look_now.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._look_now.wait(), LOOK_S)

    async def look(self) -> None:
        """Look at the folders now, and take up what the followed policies want."""
        for policy in self._policies.values():
            if policy.retry_in:
                policy.retry_in -= 1
            elif policy.following:
                policy.retry_in = policy.source.pause_looks
                try:
                    await self._take_up(policy)
                except StartupError as error:
                    _LOGGER.warning("%s; looking again later", error)
                    policy.retry_in = _RETRY_LOOKS
                except Exception:  # a bug must not end the following of all policies
                    _LOGGER.exception("taking up a new version of %s fails; trying again later", policy.source.name)
                    policy.retry_in = _RETRY_LOOKS

    async def _take_up(self, policy: _Policy) -> None:
        """Make the most wanted version live that is better than the live one and passes every check."""
        try:
            wanted = await asyncio.to_thread(candidates, policy.source)
        except OSError as error:
            _LOGGER.warning("cannot read %s (%s); looking again later", policy.source.place, error.strerror)
            policy.retry_in = _RETRY_LOOKS
            return
        policy.refused = {version: about for version, about in policy.refused.items() if version in wanted}
        for version in wanted:
            if version == policy.live or (policy.source.wanted == "latest" and version < policy.live):
                return
            if version in policy.rolled_back:
                continue
            files = await asyncio.to_thread(policy.source.files, version)
            if not version_files.is_complete(files) or policy.refused.get(version, (None,))[0] == files:
                continue
            try:
                await self._host.prepare(policy.source.name, version)
            except RefusedVersionError as error:
                self._refuse(policy, version, files, error)
                continue
            except StartupError as error:
                _LOGGER.warning("%s; version %d of %s is tried again later", error, version, policy.source.name)
                policy.retry_in = _RETRY_LOOKS
                return
            surplus: list[int] = []
            async with policy.changing:
                if policy.following:  # an operator may have decided meanwhile
                    surplus = await self._make_live(policy, version, following=True)
                elif version not in policy.loaded:
                    policy.also_loaded.add(version)
            await self._unload(policy, surplus)
            return

    def _refuse(self, policy: _Policy, version: int, files: Files, error: RefusedVersionError) -> None:
        policy.refused[version] = files, RefusedVersion(version, error.reason, str(error))
        _LOGGER.warning(
            "version %d of %s is refused (%s), and version %d stays live: %s",
            version,
            policy.source.name,
            error.reason,
            policy.live,
            error,
        )

    async def _prepare(self, policy: _Policy, version: int) -> None:
        """Load a version that an operator asked for."""
        name = policy.source.name
        if version in policy.loaded:
            return
        try:
            files = await asyncio.to_thread(policy.source.files, version)
        except StartupError as error:
            raise DeploymentError(Reason.BUSY, f"{error}; try again later") from error
        if not version_files.is_complete(files):
            raise _unknown_version(policy, version)
        try:
            await self._host.prepare(name, version)
        except RefusedVersionError as error:
            self._refuse(policy, version, files, error)
            raise DeploymentError(Reason.VERSION_REFUSED, str(error)) from error
        except StartupError as error:
            raise DeploymentError(Reason.BUSY, f"{error}; try again later") from error

    async def _make_live(self, policy: _Policy, version: int, *, following: bool) -> list[int]:
        """Make a loaded version live; the lock is held. Return the former ones that are not kept any longer."""
        name, former = policy.source.name, policy.live
        policy.following = following
        if version != former:
            await self._host.switch(name, version)
            policy.live = version
            policy.previous = [former, *(each for each in policy.previous if each != version)]
            policy.also_loaded.discard(version)
            policy.refused.pop(version, None)
            _LOGGER.info("%s: version %d is live in place of version %d", name, version, former)
        surplus, policy.previous = policy.previous[self._keep :], policy.previous[: self._keep]
        self._save()
        return surplus

    async def _unload(self, policy: _Policy, versions: Sequence[int]) -> None:
        """Unload those of `versions` that are not needed for anything else."""
        for version in versions:
            if version not in policy.loaded:
                await self._host.unload(policy.source.name, version)
        await asyncio.to_thread(policy.source.sweep, policy.loaded)

    async def _restore(self, policy: _Policy) -> None:
        """Load the former live versions that were loaded before the restart; those that fail are forgotten."""
        for version in list(policy.previous):
            try:
                await self._host.prepare(policy.source.name, version)
            except (RefusedVersionError, StartupError) as error:
                _LOGGER.warning(
                    "a rollback to version %d of %s is not possible: %s", version, policy.source.name, error
                )
                policy.previous.remove(version)

    def _save(self) -> None:
        """Keep the decisions for the next start. A failure is logged: what is decided holds until then."""
        if not self._state_file:
            return
        try:
            self._state_file.write(State({name: _state(policy) for name, policy in self._policies.items()}))
        except OSError as error:
            _LOGGER.error("this decision does not survive a restart: cannot write %s: %s", self._state_file.path, error)

    def _find(self, policy: str) -> _Policy:
        """Return a policy by its name; empty: the only one."""
        if not policy and len(self._policies) == 1:
            return next(iter(self._policies.values()))
        if policy not in self._policies:
            known = ", ".join(self._policies)
            raise DeploymentError(Reason.UNKNOWN_POLICY, f"there is no policy {policy!a:.80}; there are: {known}")
        return self._policies[policy]


def _first(source: PolicySource, live: int, kept: PolicyState | None) -> _Policy:
    """Return the decisions about a policy at the start."""
    if kept is None:
        return _Policy(source, live, following=source.follow)
    if live != kept.live:
        _LOGGER.warning(
            "version %d of %s, which was live before the restart, cannot be served; version %d is, and is not followed",
            kept.live,
            source.name,
            live,
        )
    return _Policy(
        source,
        live,
        following=kept.following and live == kept.live,
        previous=[version for version in kept.previous if version != live],
        rolled_back=set(kept.rolled_back),
    )


def _state(policy: _Policy) -> PolicyState:
    source = policy.source
    return PolicyState(
        Rule(str(source.wanted), source.follow),
        policy.live,
        tuple(policy.previous),
        policy.following,
        tuple(sorted(policy.rolled_back)),
    )


def _status(policy: _Policy) -> PolicyStatus:
    return PolicyStatus(
        policy.source.name,
        policy.live,
        tuple(policy.previous),
        tuple(sorted(policy.loaded)),
        policy.following,
        str(policy.source.wanted),
        tuple(about for _, (_, about) in sorted(policy.refused.items())),
    )


def _unknown_version(policy: _Policy, version: int) -> DeploymentError:
    loaded = ", ".join(map(str, sorted(policy.loaded)))
    return DeploymentError(
        Reason.UNKNOWN_VERSION,
        f"policy {policy.source.name} has no version {version} in {policy.source.place}; loaded are: {loaded}",
    )
