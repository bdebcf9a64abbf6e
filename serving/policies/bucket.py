"""Bucket: the versions of a policy in a bucket of Google Cloud Storage or of a service with S3's protocol.

The library obstore does the requests. It retries those that fail, with a growing pause, and finds credentials in the
environment variables of the cloud. Every call here blocks, for at most about a minute if the bucket does not answer.
"""

import contextlib
import dataclasses
import errno
import functools
import itertools
import shutil
from collections.abc import Generator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from policy.published import FORMAT_VERSION, belongs, is_version
from policy.verified_folder import MANIFEST, MAX_MANIFEST_BYTES, DamageError, parse_manifest
from serving.errors import BucketError
from serving.policies.version_files import MAX_FILES, Files
from serving.policy_settings import BucketUrl

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

RETRY: "RetryConfig" = {"max_retries": 4, "retry_timeout": timedelta(seconds=30)}
# The time for a whole request is long, because a file may be large. A connection that stalls is noticed sooner. HTTP
# without TLS is used only if an endpoint of the environment says http://.
CLIENT: "ClientConfig" = {"connect_timeout": "5s", "read_timeout": "10s", "timeout": "30min", "allow_http": True}
_CHUNK_BYTES = 4 << 20
_MESSAGE_LENGTH = 300
_CHECK = "check the address, the credentials and the network"
_INVALID_NAME = "object with invalid path"  # in the library's message
_METADATA = "//169.254.169.254/"  # where a machine in a cloud is asked for credentials, if the environment has none
_NO_CREDENTIALS = (
    "neither the environment nor this machine has credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or"
    " GOOGLE_APPLICATION_CREDENTIALS"
)


@dataclasses.dataclass(frozen=True)
class Bucket:
    """The folder at `url`, which holds the versions of one policy.

    Every method raises BucketError if the bucket cannot be read.
    """

    url: BucketUrl

    def versions(self) -> list[int]:
        """Return the versions in the folder, oldest first; they may still be incomplete."""
        with self._reading() as store:
            found = store.list_with_delimiter()["common_prefixes"]
        return sorted(int(name) for name in (prefix.rsplit("/", 1)[-1] for prefix in found) if is_version(name))

    def files(self, version: int) -> Files:
        """Return the files of a version; none if there is no such version.

        If one has a name that cannot be listed, such as `params//x`, the manifest stands for all: the others are not
        known, and those that the manifest names can still be read.
        """
        try:
            with self._reading() as store:
                objects = itertools.chain.from_iterable(store.list(f"{version}"))
                return frozenset(_file(each, version) for each in itertools.islice(objects, MAX_FILES))
        except _UnlistableError:
            with self._reading() as store:
                try:
                    return frozenset({_file(store.get(f"{version}/{MANIFEST}").meta, version)})
                except FileNotFoundError:
                    return frozenset()

    def read(self, version: int, name: str, *, most_bytes: int) -> bytes | None:
        """Return the content of a small file of a version; None if there is no such file.

        Raises:
            DamageError: it has more than `most_bytes`.
        """
        with self._reading() as store:
            try:
                found = store.get(f"{version}/{name}")
            except FileNotFoundError:
                return None
            if found.meta["size"] > most_bytes:
                raise DamageError("files", f"{name} has {found.meta['size']} bytes, more than {most_bytes}")
            return bytes(found.bytes())

    def download(self, version: int, folder: Path) -> None:
        """Write the files of a version that its manifest names, and the manifest, into the empty `folder`, unverified.

        Raises:
            DamageError: the manifest cannot be read, or a file is missing or has another size.
            OSError: the folder cannot be written.
        """
        manifest = self.read(version, MANIFEST, most_bytes=MAX_MANIFEST_BYTES)
        if manifest is None:
            self._require_unlisted(version, MANIFEST)
            raise DamageError("manifest", f"{MANIFEST} is missing")
        for name, (size, _) in parse_manifest(manifest, FORMAT_VERSION).items():
            if not belongs(name):
                raise DamageError("files", f"{name} does not belong to it")
            self._download(version, name, size=size, target=folder / name)
        (folder / MANIFEST).write_bytes(manifest)

    def _download(self, version: int, name: str, *, size: object, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file, self._reading() as store:
            try:
                found = store.get(f"{version}/{name}")
            except FileNotFoundError as error:
                self._require_unlisted(version, name)
                raise DamageError("files", f"{name} is missing") from error
            actual = found.meta["size"]
            if actual != size:
                raise DamageError("hash", f"{name} has {actual} bytes instead of {size}")
            if (free := shutil.disk_usage(target.parent).free) < actual:  # do not take it from other programs
                raise OSError(errno.ENOSPC, f"{name} has {actual} bytes, and {free} are free")
            for chunk in found.stream(min_chunk_size=_CHUNK_BYTES):
                file.write(chunk)

    def _require_unlisted(self, version: int, name: str) -> None:
        """Check that a file that could not be found is not listed either: otherwise the answer is a fault.

        Raises:
            BucketError: it is listed.
        """
        if any(listed == name for listed, *_ in self.files(version)):
            raise BucketError(f"cannot read {self.url} ({version}/{name} is listed, and was not found); {_CHECK}")

    @contextlib.contextmanager
    def _reading(self) -> Generator["ObjectStore"]:
        """Yield the store; turn what the library raises into a BucketError of one line."""
        from obstore.exceptions import BaseError

        try:
            yield _store(self.url)
        except (BaseError, FileNotFoundError, ValueError) as error:
            _store.cache_clear()  # the next attempt reads the credentials again, which may have been replaced
            if _INVALID_NAME in str(error):
                reason = ascii(str(error).partition("\n\n")[0])[1:-1][
                    :_MESSAGE_LENGTH
                ]  # the name may have any character
                raise _UnlistableError(f"cannot read {self.url} ({reason}); remove this object") from error
            reason = next(iter(str(error).splitlines()), repr(error))[:_MESSAGE_LENGTH]
            hint = _NO_CREDENTIALS if _METADATA in reason else _CHECK
            raise BucketError(f"cannot read {self.url} ({reason}); {hint}") from error


class _UnlistableError(BucketError):
    """An object has a name with an empty part, with `.`, `..` or control characters, which the library refuses."""


def _file(about: "ObjectMeta", version: int) -> tuple[str, str, int, int]:
    """Return a file of a version as `Files` has it."""
    name, changed_s = about["path"].removeprefix(f"{version}/"), about["last_modified"].timestamp()
    return name, about["e_tag"] or "", about["size"], int(changed_s * 1e9)


@functools.cache
def _store(url: BucketUrl) -> "ObjectStore":
    """Return the store of a folder. It has a pool of connections, so each folder has one for the whole process."""
    from obstore.store import from_url

    return from_url(str(url), client_options=CLIENT, retry_config=RETRY)
