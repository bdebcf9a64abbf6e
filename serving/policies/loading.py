"""VersionLoader: loads versions of policies for a `serving.policies.deployment`, and unloads those without a use.

A version that fails a check is refused and logged, and not tried again until its files change.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from typing import Protocol

from serving.engine.thread_priority import Result, run_in_thread
from serving.errors import BucketError, DeploymentError, Reason, RefusedVersionError, StartupError
from serving.policies import version_files
from serving.policies.decisions import PolicyDecisions
from serving.policies.polling import RETRY_POLLS
from serving.policies.source import PolicySource, candidates, newest
from serving.policies.status import RefusedVersion
from serving.policies.version_files import Files

_LOGGER = logging.getLogger(__name__)
_NEXT_S = 5.0  # for which an operator waits to hear which version is next; the command waits for 10 s


class LoadingHost(Protocol):
    """Carries out loading."""

    async def prepare(self, policy: str, version: int) -> None:
        """Load a version. Raises RefusedVersionError, or StartupError if the machine lacks what loading needs."""
        ...

    async def unload(self, policy: str, version: int) -> None:
        """Unload a version that is neither live nor on trial."""
        ...


class VersionLoader:
    """Loads and unloads versions.

    Args:
        host: carries it out.
        keep: how many former live versions of a policy stay loaded.
    """

    def __init__(self, host: LoadingHost, *, keep: int) -> None:
        self.host = host
        self._keep = keep
        self._sweeping = asyncio.Lock()

    async def load(self, policy: PolicyDecisions, version: int) -> bool:
        """Load a version that an operator asked for. Return False, without any effect, if it is loaded.

        Raises:
            DeploymentError: there is no such version, it is refused, or the machine lacks what loading needs.
        """
        if version in policy.loaded:
            return False
        files = await _read(policy.source.files, version)
        if not version_files.is_complete(files):
            raise await _unknown_version(policy.source, version, files)
        try:
            await self.host.prepare(policy.name, version)
        except RefusedVersionError as error:
            await _refuse(policy, version, files, error)
            raise DeploymentError(Reason.VERSION_REFUSED, str(error)) from error
        except StartupError as error:
            raise DeploymentError(Reason.BUSY, f"{error}; try again later") from error
        policy.refused.pop(version, None)
        return True

    @contextlib.asynccontextmanager
    async def loaded(self, policy: PolicyDecisions, version: int) -> AsyncGenerator[None]:
        """Load a version if needed, and hold the lock of its policy. Errors as of `load`."""
        while True:
            is_new = await self.load(policy, version)
            async with policy.changing:
                if is_new or version in policy.loaded:  # it may have been unloaded while this waited for the lock
                    async with self.listed(policy, version):
                        yield
                    return

    @contextlib.asynccontextmanager
    async def listed(self, policy: PolicyDecisions, version: int) -> AsyncGenerator[None]:
        """List a loaded version as loaded if it has no other use at the end, so that it can be unloaded."""
        try:
            yield
        finally:
            if version not in policy.loaded:
                policy.also_loaded.add(version)

    async def load_wanted(self, policy: PolicyDecisions) -> int | None:
        """Load the most wanted version that is better than the live one and passes every check; None: there is none.

        Raises:
            DeploymentError: the bucket cannot be read.
        """
        try:
            wanted = await _read(candidates, policy.source)
        except OSError as error:
            _LOGGER.warning("cannot read %s (%s); trying again later", policy.source.path, error.strerror)
            policy.retry_in = RETRY_POLLS
            return None
        policy.refused = {version: about for version, about in policy.refused.items() if version in wanted}
        remaining = iter(wanted)
        while found := await _next_acceptable(policy, remaining):
            version, files = found
            try:
                await self.host.prepare(policy.name, version)
            except RefusedVersionError as error:
                await _refuse(policy, version, files, error)
            except StartupError as error:
                _LOGGER.warning("%s; version %d of %s is tried again later", error, version, policy.name)
                policy.retry_in = RETRY_POLLS
                return None
            else:
                policy.refused.pop(version, None)
                return version
        return None

    async def next_wanted(self, policy: PolicyDecisions) -> int | None:
        """Return the version that `load_wanted` loads next; the live one if it loads none.

        None: that is unknown, because the folder or the bucket cannot be read within a few seconds.
        """
        try:
            async with asyncio.timeout(_NEXT_S):
                found = await _next_acceptable(policy, iter(await _read(candidates, policy.source)))
        except (TimeoutError, OSError, DeploymentError):  # polling logs the reason
            return None
        return found[0] if found else policy.live

    async def require_wanted(self, policy: PolicyDecisions) -> None:
        """Check that no version that is wanted more than the live one is refused.

        Raises:
            DeploymentError: one is, or the bucket cannot be read.
        """
        for version in await _read(candidates, policy.source):
            if _is_settled(policy, version):
                return
            if version in policy.refused:
                _, refused = policy.refused[version]
                raise DeploymentError(
                    Reason.VERSION_REFUSED,
                    f"version {version} of {policy.name} is refused ({refused.reason}): {refused.detail}; version"
                    f" {policy.live} stays live",
                )

    def forget_surplus(self, policy: PolicyDecisions) -> list[int]:
        """Forget former live versions of `policy` beyond those that are kept, and return them."""
        surplus, policy.previous = policy.previous[self._keep :], policy.previous[: self._keep]
        return surplus

    async def unload_unused(self, policy: PolicyDecisions, versions: Iterable[int | None]) -> None:
        """Unload those of `versions` that are not needed; None stands for none."""
        for version in versions:
            if version is not None and version not in policy.loaded:
                await self.host.unload(policy.name, version)
        await self.keep_copies(policy)

    async def keep_copies(self, policy: PolicyDecisions) -> None:
        """Keep the copies of versions from a bucket that are loaded now, and remove old ones."""
        if copies := policy.source.copies:
            async with self._sweeping:
                await asyncio.to_thread(copies.keep, policy.loaded)


async def _next_acceptable(policy: PolicyDecisions, versions: Iterator[int]) -> tuple[int, Files] | None:
    """Return the next of `versions`, the most wanted first, that following may take up, with its files; None: none.

    It is complete, was neither rolled back nor refused, and is wanted more than the live one. Errors as of `_read`.
    """
    for version in versions:
        if _is_settled(policy, version):
            return None
        if version in policy.rolled_back:
            continue
        files = await _read(policy.source.files, version)
        if version_files.is_complete(files) and policy.refused.get(version, (None,))[0] != files:
            return version, files
    return None


def _is_settled(policy: PolicyDecisions, version: int) -> bool:
    """Return whether neither `version` nor one that is wanted less takes the place of the live one."""
    return version == policy.live or (policy.source.wanted == "latest" and version < policy.live)


async def _read(function: Callable[..., Result], *arguments: object) -> Result:
    """Return what a function that reads folders or a bucket returns.

    Raises:
        DeploymentError: the bucket cannot be read.
    """
    try:
        return await run_in_thread(function, *arguments)
    except BucketError as error:
        raise DeploymentError(Reason.BUSY, str(error)) from error


async def _unknown_version(source: PolicySource, version: int, files: Files) -> DeploymentError:
    """Return the error for a version that is not there, or of which only some files are. Errors as of `_read`."""
    try:
        others = newest([each for each in await _read(source.versions) if each != version])
    except OSError as error:
        others = f"the others cannot be listed: {error}"
    incomplete = " with a manifest.json, which is copied last" if files else ""
    return DeploymentError(
        Reason.UNKNOWN_VERSION,
        f"policy {source.name} has no version {version} in {source.path}{incomplete}; {others}",
    )


async def _refuse(policy: PolicyDecisions, version: int, files: Files, error: RefusedVersionError) -> None:
    policy.refused[version] = files, RefusedVersion(version, error.reason, error.detail)
    _LOGGER.warning(
        "version %d of %s is refused (%s), and version %d stays live: %s",
        version,
        policy.name,
        error.reason,
        policy.live,
        error.detail,
    )
    await asyncio.to_thread(policy.source.discard, version)
