"""Load a valid version of each policy from disk, the most wanted one that passes all checks.

A version that fails a check is logged, counted by its reason, and not changed; then the next wanted one is tried.
This module writes and removes nothing.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence

from policy import bundle
from policy.bundle import Bundle, BundleError
from serving.errors import StartupError, shortage
from serving.policies.source import PolicySource, candidates

_LOGGER = logging.getLogger(__name__)

UNREADABLE = "unreadable"  # reason for a version whose files cannot be read


def load_all(
    sources: Sequence[PolicySource],
    *,
    on_rejected: Callable[[str], None],
    versions: Sequence[int] | None = None,
    strict: bool = False,
) -> dict[str, Bundle]:
    """Load a version of each of `sources`, by the policy's name, in the order of `sources`.

    Args:
        sources: each with another name.
        on_rejected: called with the reason, one word, for every version that fails a check.
        versions: the version to load of each; None: the most wanted valid one.
        strict: whether a most wanted version that fails a check is an error.

    Raises:
        StartupError: a source has no valid version, the version that must be served is not valid, or the machine lacks
            a resource that loading needs.
    """
    return {
        source.name: _load(source, version, on_rejected=on_rejected, strict=strict)
        for source, version in zip(sources, versions or [None] * len(sources), strict=True)
    }


def _load(source: PolicySource, only: int | None, *, on_rejected: Callable[[str], None], strict: bool) -> Bundle:
    folder = source.folder
    try:
        versions = candidates(source) if only is None else [only]
    except OSError as error:
        hint = shortage(error) or "check its permissions"
        raise StartupError(f"cannot read {folder} ({error.strerror}); {hint}") from error
    for version in versions:
        path = folder / str(version)
        try:
            return _named(bundle.read(path), source.name)
        except Exception as error:
            if lacking := shortage(error):  # which has nothing to do with the policy
                raise StartupError(f"cannot load {path}: {lacking}") from error
            if not isinstance(error, BundleError | OSError):
                raise
            problem = str(error) if isinstance(error, BundleError) else f"cannot read {path}: {error}"
            on_rejected(error.reason if isinstance(error, BundleError) else UNREADABLE)
            if only is None and version == source.wanted:
                raise StartupError(f"version {version} of {source.name} cannot be served: {problem}") from error
            if only is None and strict:
                raise StartupError(f"--strict: the {source.wanted} version cannot be served: {problem}") from error
            _LOGGER.warning("skipping version %d: %s", version, problem)
    if only is not None:
        raise StartupError(
            f"version {only} in {folder}, which the other workers serve, fails a check now; restart the server"
        )
    raise StartupError(
        f"no version in {folder} is valid, of {len(versions)}; the log has the reason for each. Publish a new version,"
        " or choose another folder with --policies"
    )


def _named(loaded: Bundle, name: str) -> Bundle:
    """Return a policy under the name with which it is served."""
    return dataclasses.replace(loaded, spec=dataclasses.replace(loaded.spec, name=name))
