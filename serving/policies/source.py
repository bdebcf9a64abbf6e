"""PolicySource: one policy of --policies: its name, its folder, the version that is wanted, and its settings.

Imports no JAX, because the supervisor of several workers uses it.
"""

import contextlib
import dataclasses
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from policy import published
from policy.published import MANIFEST, STAY, DescriptionError, is_version
from serving.config import ServeConfig
from serving.errors import BucketError, StartupError, shortage
from serving.policies import version_files
from serving.policies.bucket import Bucket
from serving.policies.copies import Copies
from serving.policies.version_files import Files
from serving.policy_settings import BucketUrl, NamedPath, PolicyPath, PolicySettings, Wanted
from serving.user_folders import copies_folder

_BUCKET_PAUSE_POLLS = 9  # polls are a second apart
_DEFAULT: Wanted = "latest"
_LISTED = 8  # versions in a message


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicySource:
    """One policy that is served."""

    name: str  # under which it is served
    folder: Path  # holds its versions, or copies of those in a bucket
    given: Path  # `folder`, or one version in it, if --policies names one
    copies: Copies | None = None  # of the versions in a bucket; None: the versions are in `folder`
    wanted: Wanted
    follow: bool  # take up new versions
    max_batch_rows: int
    max_batch_delay_s: float
    max_queue_rows: int
    device: str = ""  # that computes it; empty: JAX's default

    @property
    def path(self) -> PolicyPath:
        """Where the versions are."""
        return self.copies.url if self.copies else self.folder

    @property
    def pause_polls(self) -> int:
        """How many polls for new versions to skip after each one. Requests to a bucket take time and cost money."""
        return _BUCKET_PAUSE_POLLS if self.copies else 0

    def folder_of(self, version: int) -> Path:
        """Return the folder of a version."""
        return self.folder / str(version)

    def root(self, version: int) -> Path:
        """Return the folder under which the symbolic links in a version must end."""
        return self.given if self.given == self.folder_of(version) else self.folder

    def versions(self) -> list[int]:
        """Return the versions that are there, oldest first, unverified.

        Raises:
            OSError: the folder cannot be read.
            BucketError: the bucket cannot be read.
        """
        return self.copies.bucket.versions() if self.copies else published.versions(self.folder)

    def files(self, version: int) -> Files:
        """Return the files of a version, unverified; none if there is no such version.

        Raises:
            BucketError: there is no copy of the version, and the bucket cannot be read.
        """
        if self.copies and not self.copies.has(version):
            return self.copies.bucket.files(version)
        return version_files.scan(self.folder_of(version))

    def held(self, version: int) -> contextlib.AbstractContextManager[Path]:
        """Return a context with the folder of a version, to read it. A version in a bucket is copied first if needed.

        Raises:
            RefusedVersionError, BucketError, StartupError: in the context, as `Copies.held`.
        """
        return self.copies.held(version) if self.copies else contextlib.nullcontext(self.folder_of(version))

    def fetch(self, version: int) -> None:
        """Copy a version in a bucket, if there is no copy of it. Errors as of `held`."""
        with self.held(version):
            pass

    def repair(self, version: int, seen: os.stat_result) -> bool:
        """Remove a damaged copy of a version in a bucket, as `Copies.repair`. False if the policy is in a folder."""
        return self.copies is not None and self.copies.repair(version, seen)

    def discard(self, version: int) -> None:
        """Remove the copy of a version that was refused: the version in the bucket may be replaced."""
        if self.copies:
            self.copies.discard(version)


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
                f"{sources[source.name].path} and {source.path} both hold a policy named {source.name}; serve one"
                f" of them, or give one another name: --policies NAME={source.path}"
            )
        sources[source.name] = source
    if unknown := sorted(config.wanted_versions.keys() - sources.keys()):
        raise StartupError(f"--versions names {unknown[0]!r:.80}, which is not served; there are: {', '.join(sources)}")
    return tuple(sources.values())


def newest(versions: Sequence[int]) -> str:
    """Return, for the message of an error, the newest of `versions`, which are the oldest first."""
    return f"the newest ones are: {', '.join(map(str, versions[-_LISTED:]))}" if versions else "there are no others"


def candidates(source: PolicySource) -> list[int]:
    """Return the versions in the folder of `source` that may be served, the most wanted first, unverified.

    Raises:
        OSError: the folder cannot be read.
        BucketError: the bucket cannot be read.
    """
    if isinstance(source.wanted, int):
        return [source.wanted]
    return _most_wanted(source, source.versions())


def copied(source: PolicySource) -> list[int]:
    """Return, as `candidates`, those of which there is a copy. Reads no bucket."""
    versions = source.copies.versions() if source.copies else []
    if isinstance(source.wanted, int):
        return [version for version in versions if version == source.wanted]
    return _most_wanted(source, versions)


def _most_wanted(source: PolicySource, versions: Sequence[int]) -> list[int]:
    if source.wanted == "latest":
        return list(reversed(versions))
    copies = source.copies
    return published.best_first(
        {each: copies.stay(each) if copies else published.metric(source.folder_of(each), STAY) for each in versions}
    )


@dataclasses.dataclass(frozen=True)
class _Found:
    """What is at a path of --policies."""

    path: PolicyPath  # that holds the versions
    folder: Path  # as in PolicySource, like the next two
    given: Path
    copies: Copies | None
    versions: Sequence[int]  # oldest first
    only: int | None = None  # the version that the path is; None: it is a folder of versions
    outage: BucketError | None = None  # why the bucket cannot be read; then `versions` are those with a copy


def _resolve(policy: PolicyPath | NamedPath, config: ServeConfig) -> PolicySource:
    path, name = (policy.path, policy.name) if isinstance(policy, NamedPath) else (policy, "")
    found = _in_bucket(path) if isinstance(path, BucketUrl) else _in_folder(path)
    name = name or _stored_name(found)
    own = next((each for each in config.policy_settings if each.name == name), PolicySettings(name=name))
    asked = config.wanted_versions.get(name)
    wanted = _wanted(own.versions if asked is None else asked, name=name, path=path, only=found.only)
    if isinstance(wanted, int) and wanted not in found.versions:
        if found.outage:
            raise found.outage
        raise StartupError(f"{found.path} has no version {wanted} of {name}; {newest(found.versions)}")
    follow = next((each for each in (own.follow, config.follow) if each is not None), wanted == "latest")
    return PolicySource(
        name=name,
        folder=found.folder,
        given=found.given,
        copies=found.copies,
        wanted=wanted,
        follow=follow and not isinstance(wanted, int),
        max_batch_rows=own.max_batch_rows or config.max_batch_rows,
        max_batch_delay_s=config.max_batch_delay_s if own.max_batch_delay_s is None else own.max_batch_delay_s,
        max_queue_rows=own.max_queue_rows or config.max_queue_rows,
        device=own.device or config.device,
    )


def _wanted(asked: Wanted | None, *, name: str, path: PolicyPath, only: int | None) -> Wanted:
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


def _stored_name(found: _Found) -> str:
    """Return the name in the newest policy.json that can be read."""
    problems: list[str] = []
    for version in reversed(found.versions):
        copies, local = found.copies, found.folder / str(version)
        with copies.described(version) if copies else contextlib.nullcontext(local) as folder:
            try:
                return published.published_name(folder)
            except DescriptionError as error:
                problems.append(str(error).replace(str(folder), f"{found.path}/{version}"))
    raise StartupError(
        f"no version in {found.path} is valid, of {len(found.versions)}; of the newest one: {problems[0]}"
    )


def _in_folder(path: Path) -> _Found:
    if versions := _versions(path):
        return _Found(path, path, path, None, versions)
    return _Found(path.parent, path.parent, path, None, [int(path.name)], only=int(path.name))


def _in_bucket(url: BucketUrl) -> _Found:
    try:
        return _find(url, lambda folder: Bucket(folder).versions())
    except BucketError as error:
        try:
            return dataclasses.replace(_find(url, lambda folder: _copies(folder).versions()), outage=error)
        except StartupError:  # there are no copies either
            raise error from None


def _find(url: BucketUrl, versions_in: Callable[[BucketUrl], list[int]]) -> _Found:
    if versions := versions_in(url):
        copies = _copies(url)
        return _Found(url, copies.folder, copies.folder, copies, versions)
    if is_version(url.name) and int(url.name) in versions_in(url.parent):
        copies = _copies(url.parent)
        return _Found(url.parent, copies.folder, copies.folder / url.name, copies, [int(url.name)], int(url.name))
    if likely := next(filter(versions_in, (url / "policies", url.parent)), None):
        raise StartupError(f"{url} holds no published version, but {likely} does; use --policies {likely}")
    raise StartupError(f"{url} holds no published version; upload the folder policies/ of a run to it")


def _copies(url: BucketUrl) -> Copies:
    return Copies(url, copies_folder(str(url)))


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
