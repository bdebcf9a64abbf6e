"""Read versions from disk, verified.

A version that fails a check is not changed.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from policy import bundle
from policy.bundle import Bundle, BundleError
from serving.errors import BucketError, RefusedVersionError, StartupError, shortage
from serving.policies.source import PolicySource

_LOGGER = logging.getLogger(__name__)

UNREADABLE = "unreadable"  # reason for a version whose files cannot be read


def read(source: PolicySource, version: int) -> Bundle:
    """Verify and load a version of a policy, under the name with which the policy is served.

    Raises:
        RefusedVersionError: it fails a check.
        StartupError: the machine lacks a resource that loading needs, or a bucket cannot be read now.
    """
    with source.held(version) as path:
        seen = path.stat() if source.copies else None
        try:
            return _read(path, source, version)
        except RefusedVersionError:
            if not (seen and source.repair(version, seen)):
                raise
    with source.held(version) as path:
        return _read(path, source, version)


def load_all(
    sources: Sequence[PolicySource],
    choices: Sequence[Sequence[int]],
    *,
    on_rejected: Callable[[str], None],
    strict: bool = False,
) -> dict[str, Bundle]:
    """Load a version of each of `sources`, by the policy's name, in the order of `sources`.

    A version that fails a check is logged and counted; then the next one is tried.

    Args:
        sources: each with another name.
        choices: the versions to try of each, the most wanted first.
        on_rejected: called with the reason, one word, for every version that fails a check.
        strict: whether a most wanted version that fails a check is an error.

    Raises:
        StartupError: no version of a source passes, or the machine lacks a resource that loading needs.
    """
    return {
        source.name: _load_first(source, versions, on_rejected=on_rejected, strict=strict)
        for source, versions in zip(sources, choices, strict=True)
    }


def _load_first(
    source: PolicySource, versions: Sequence[int], *, on_rejected: Callable[[str], None], strict: bool
) -> Bundle:
    outage: BucketError | None = None  # from then on, only versions with a copy are tried
    for version in versions:
        if outage and not (source.copies and source.copies.has(version)):
            continue
        try:
            return read(source, version)
        except BucketError as error:
            _LOGGER.warning("skipping version %d: %s", version, error)
            outage = error
        except RefusedVersionError as error:
            on_rejected(error.reason)
            source.discard(version)
            if len(versions) == 1:
                raise StartupError(f"version {version} of {source.name} cannot be served: {error}") from error
            if strict:
                raise StartupError(f"--strict: the {source.wanted} version cannot be served: {error}") from error
            _LOGGER.warning("skipping version %d: %s", version, error)
    if outage:
        raise outage
    raise StartupError(
        f"no version in {source.path} is valid, of {len(versions)}; the log has the reason for each. Publish a new"
        " version, or choose another folder with --policies"
    )


def _read(path: Path, source: PolicySource, version: int) -> Bundle:
    try:
        found = bundle.read(path, root=source.root(version))
        return dataclasses.replace(found, spec=dataclasses.replace(found.spec, name=source.name))
    except Exception as error:
        if lacking := shortage(error):  # which has nothing to do with the policy
            raise StartupError(f"cannot load {path}: {lacking}") from error
        if isinstance(error, BundleError):
            raise RefusedVersionError(error.reason, str(error), detail=error.detail) from error
        if isinstance(error, OSError):
            problem = f"cannot read {error.filename or path}: {error.strerror or error}"
            raise RefusedVersionError(UNREADABLE, problem) from error
        raise
