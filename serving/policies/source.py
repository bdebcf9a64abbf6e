"""PolicySource: one policy of --policies: its name, its folder, the version that is wanted, and its settings.

Imports no JAX, because the supervisor of several workers uses it.
"""

import dataclasses
import stat
from collections.abc import Sequence
from pathlib import Path

from policy import published
from policy.published import MANIFEST, STAY, DescriptionError
from serving.config import ServeConfig
from serving.errors import StartupError, shortage
from serving.policy_settings import NamedPath, PolicySettings, Wanted

_DEFAULT: Wanted = "latest"
_LISTED = 8  # versions in a message


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicySource:
    """One policy that is served."""

    name: str  # under which it is served
    folder: Path  # holds its versions
    given: Path  # with --policies: `folder`, or one version in it
    wanted: Wanted
    follow: bool  # take up new versions
    max_batch_rows: int
    max_batch_delay_s: float
    max_queue_rows: int
    device: str = ""  # that computes it; empty: JAX's default

    def path(self, version: int) -> Path:
        """Return the folder of a version."""
        return self.folder / str(version)

    def root(self, version: int) -> Path:
        """Return the folder under which the symbolic links in a version must end."""
        return self.given if self.given == self.path(version) else self.folder


def resolve(config: ServeConfig) -> tuple[PolicySource, ...]:
    """Return the policies that `config` names, in its order. Reads folders and policy.json files.

    A path without a name gets the name in the specification of its newest version.

    Raises:
        StartupError: a path is no folder with versions and no version, two policies have the same name, or a setting
            is about a policy that is not served or about a version that is not there.
    """
    sources: dict[str, PolicySource] = {}
    for policy in config.policies:
        source = _resolve(policy, config)
        if source.name in sources:
            raise StartupError(
                f"{sources[source.name].folder} and {source.folder} both hold a policy named {source.name}; serve one"
                f" of them, or give one another name: --policies NAME={source.folder}"
            )
        sources[source.name] = source
    if unknown := sorted(config.wanted_versions.keys() - sources.keys()):
        raise StartupError(f"--versions names {unknown[0]!r:.80}, which is not served; there are: {', '.join(sources)}")
    return tuple(sources.values())


def candidates(source: PolicySource) -> list[int]:
    """Return the versions in the folder of `source` that may be served, the most wanted first, unverified.

    Raises:
        OSError: the folder cannot be read.
    """
    if isinstance(source.wanted, int):
        return [source.wanted]
    versions = published.versions(source.folder)
    if source.wanted == "best":
        return published.best_first({each: published.metric(source.path(each), STAY) for each in versions})
    return versions[::-1]


def _resolve(policy: Path | NamedPath, config: ServeConfig) -> PolicySource:
    path, name = (policy.path, policy.name) if isinstance(policy, NamedPath) else (policy, "")
    versions = _versions(path)
    folder, only = (path, None) if versions else (path.parent, int(path.name))
    name = name or _stored_name(folder, versions or [int(path.name)])
    own = next((each for each in config.policy_settings if each.name == name), PolicySettings(name=name))
    asked = config.wanted_versions.get(name)
    wanted = _wanted(own.versions if asked is None else asked, name=name, path=path, only=only)
    if isinstance(wanted, int) and only is None and wanted not in versions:
        known = ", ".join(map(str, versions[-_LISTED:]))
        raise StartupError(f"{folder} has no version {wanted} of {name}; the newest ones are: {known}")
    follow = next((each for each in (own.follow, config.follow) if each is not None), wanted == "latest")
    return PolicySource(
        name=name,
        folder=folder,
        given=path,
        wanted=wanted,
        follow=follow and not isinstance(wanted, int),
        max_batch_rows=own.max_batch_rows or config.max_batch_rows,
        max_batch_delay_s=config.max_batch_delay_s if own.max_batch_delay_s is None else own.max_batch_delay_s,
        max_queue_rows=own.max_queue_rows or config.max_queue_rows,
        device=own.device or config.device,
    )


def _wanted(asked: Wanted | None, *, name: str, path: Path, only: int | None) -> Wanted:
    """Return the version to serve of the policy `name`.

    Args:
        asked: what the settings want; None: nothing.
        only: the version that `path` is; None: it is a folder of versions.

    Raises:
        StartupError: `path` is one version, and a setting wants another one.
    """
    if only is None:
        return _DEFAULT if asked is None else asked  # a version may be 0
    if asked not in (None, only):
        raise StartupError(
            f"{path} is version {only} of {name}, so version {asked} cannot be served; use --policies {path.parent}"
        )
    return only


def _stored_name(folder: Path, versions: Sequence[int]) -> str:
    """Return the name in the newest policy.json in `folder` that can be read."""
    problems: list[str] = []
    for version in reversed(versions):
        try:
            return published.published_name(folder / str(version))
        except DescriptionError as error:
            problems.append(str(error))
    raise StartupError(f"no version in {folder} is valid, of {len(versions)}; of the newest one: {problems[0]}")


def _versions(folder: Path) -> list[int]:
    """Return the versions in `folder`, oldest first; none if it is itself a version."""
    try:
        status = folder.stat()
        if not stat.S_ISDIR(status.st_mode):
            raise StartupError(f"{folder} is not a folder; choose the folder that holds the published versions")
        if versions := published.versions(folder):
            return versions
        if published.is_version(folder.name) and (folder / MANIFEST).exists():
            return []
        likely = next(filter(published.versions, (folder / "policies", folder.parent)), None)
    except FileNotFoundError as error:
        raise StartupError(
            f"{folder} does not exist; train a policy first, or choose another folder with --policies"
        ) from error
    except OSError as error:
        hint = shortage(error) or "check its permissions"
        raise StartupError(f"cannot read {folder} ({error.strerror}); {hint}") from error
    if likely:
        raise StartupError(f"{folder} holds no published version, but {likely} does; use --policies {likely}")
    raise StartupError(
        f"{folder} holds no published version; train a policy first, or choose another folder with --policies"
    )
