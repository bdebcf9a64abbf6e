"""Copies: verified copies of the versions in a bucket, in a folder of the user's cache.

A copy is complete or not there: it is downloaded beside its place, compared with its manifest, and renamed. All
processes of the user share the folder, workers and other servers. One of them downloads at a time. A process holds a
shared lock of a copy's manifest while it uses the copy; a locked copy is not removed. The system releases the locks of
a process that ends, however it ends.
"""

import contextlib
import dataclasses
import fcntl
import logging
import math
import os
import time
from collections.abc import Generator, Set
from pathlib import Path

from policy import published, verified_folder
from policy.published import DESCRIPTION, FORMAT_VERSION, MANIFEST, MAX_DESCRIPTION_BYTES, STAY, belongs
from policy.temporary_folder import temporary_folder
from policy.verified_folder import MAX_MANIFEST_BYTES, DamageError
from serving.errors import RefusedVersionError, StartupError
from serving.policies.bucket import Bucket
from serving.policy_settings import BucketUrl

_LOGGER = logging.getLogger(__name__)

_SPARE = 3  # copies beside those that are in use, for a restart
_LOCK = ".lock"  # the file that is locked during a download
_WAIT_S, _PAUSE_S = 600.0, 0.05  # for another process that downloads


@dataclasses.dataclass(frozen=True)
class Copies:
    """Copies of the versions in the bucket's folder `url`, in `folder`, where each has the name of its version."""

    url: BucketUrl
    folder: Path
    _kept: dict[int, int] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)
    _stays: dict[int, float] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def bucket(self) -> Bucket:
        """Where the versions are."""
        return Bucket(self.url)

    def has(self, version: int) -> bool:
        """Return whether there is a copy of a version."""
        return (self._path(version) / MANIFEST).is_file()

    def versions(self) -> list[int]:
        """Return the versions of which there are copies, oldest first."""
        return [version for version in published.versions(self.folder) if self.has(version)]

    @contextlib.contextmanager
    def held(self, version: int) -> Generator[Path]:
        """Yield the copy of a version, which is made if there is none. It is not removed before the context ends.

        Raises:
            RefusedVersionError: the files in the bucket are not those of the manifest there.
            BucketError: the bucket cannot be read.
            StartupError: the copy cannot be written, or another process downloads and does not finish.
        """
        while (lock := self._shared(version)) is None:
            with self._downloading():
                if not self.has(version):
                    self._download(version)
        try:
            path = self._path(version)
            with contextlib.suppress(OSError):  # only the order in which copies are removed depends on it
                os.utime(path)
            yield path
        finally:
            os.close(lock)

    @contextlib.contextmanager
    def described(self, version: int) -> Generator[Path]:
        """Yield a folder with the policy.json and the manifest of a version, as far as it has them.

        Raises:
            BucketError: there is no copy, and the bucket cannot be read.
        """
        if (lock := self._shared(version)) is not None:
            try:
                yield self._path(version)
            finally:
                os.close(lock)
            return
        with temporary_folder("kilolayer-description-") as folder:
            for name, most_bytes in ((MANIFEST, MAX_MANIFEST_BYTES), (DESCRIPTION, MAX_DESCRIPTION_BYTES)):
                with contextlib.suppress(DamageError):  # which is found again, and named, when the version is copied
                    if (content := self.bucket.read(version, name, most_bytes=most_bytes)) is not None:
                        (folder / name).write_bytes(content)
            yield folder

    def stay(self, version: int) -> float:
        """Return the eval/stay of a version as `published.metric`. It is read once. Errors as of `described`."""
        if version not in self._stays:
            with self.described(version) as folder:
                if not (folder / MANIFEST).exists():  # it is still being uploaded
                    return published.metric(folder, STAY)
                stay = published.metric(folder, STAY)
            if math.isfinite(stay):  # otherwise a file is damaged, and may be uploaded again
                self._stays[version] = stay
            return stay
        return self._stays[version]

    def discard(self, version: int) -> None:
        """Remove the copy of a version, so that it is copied anew when it is needed. No effect while it is in use."""
        self._stays.pop(version, None)
        try:
            if (lock := self._locked(version, fcntl.LOCK_EX | fcntl.LOCK_NB)) is None:
                return
            try:
                verified_folder.remove(self._path(version))
            finally:
                os.close(lock)
        except OSError as error:
            _LOGGER.warning("cannot remove the copy of %s/%d: %s", self.url, version, error.strerror or error)

    def repair(self, version: int, seen: os.stat_result) -> bool:
        """Remove the copy of a version if it is damaged, also while it is in use. Return whether it can be read anew.

        It can if it was removed, or if it is not the folder `seen` any more, because another process has replaced it.
        Errors as of `held`.
        """
        path = self._path(version)
        with self._downloading():
            try:
                if not os.path.samestat(path.stat(), seen):
                    return True
                _verify(path)
            except FileNotFoundError:  # another process has just removed it
                return True
            except DamageError as error:
                _LOGGER.warning("the copy of %s/%d is damaged, and is made again: %s", self.url, version, error)
                verified_folder.remove(path)
                return True
            except OSError as error:
                raise _unusable(error) from error
        return False

    def keep(self, needed: Set[int]) -> None:
        """Keep the copies of `needed` until the next call. Of the unused copies, keep the three used last."""
        try:
            for version in self._kept.keys() - needed:
                os.close(self._kept.pop(version))
            for version in needed - self._kept.keys():
                if (lock := self._locked(version, fcntl.LOCK_SH)) is not None:
                    self._kept[version] = lock
            others = sorted(set(self.versions()) - needed, key=self._used_s, reverse=True)
        except OSError as error:
            _LOGGER.warning("cannot read the copies of %s in %s: %s", self.url, self.folder, error.strerror or error)
            return
        for version in others[_SPARE:]:
            self.discard(version)

    def _path(self, version: int) -> Path:
        return self.folder / str(version)

    def _used_s(self, version: int) -> float:
        try:
            return self._path(version).stat().st_mtime
        except FileNotFoundError:  # another process has just removed it
            return 0.0

    def _locked(self, version: int, kind: int) -> int | None:
        """Return a descriptor that holds the lock of the copy of a version; None: there is no copy, or it is in use.

        It is in use only for LOCK_EX | LOCK_NB, which is for removing it. LOCK_SH waits until it is removed.
        """
        manifest = self._path(version) / MANIFEST
        try:
            lock = os.open(manifest, os.O_RDWR)
        except FileNotFoundError:
            return None
        with contextlib.suppress(BlockingIOError, FileNotFoundError), contextlib.ExitStack() as closing:
            closing.callback(os.close, lock)
            fcntl.flock(lock, kind)
            if os.path.samestat(os.fstat(lock), manifest.stat()):  # otherwise it has just been removed
                closing.pop_all()
                return lock
        return None

    def _shared(self, version: int) -> int | None:
        try:
            return self._locked(version, fcntl.LOCK_SH)
        except (IsADirectoryError, NotADirectoryError):  # the copy is no copy
            return None
        except OSError as error:
            raise _unusable(error) from error

    @contextlib.contextmanager
    def _downloading(self) -> Generator[None]:
        """Hold the lock for downloads."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise _unusable(error) from error
        try:
            self._wait_for(lock)
            yield
        finally:
            os.close(lock)

    def _wait_for(self, lock: int) -> None:
        ends_s = time.monotonic() + _WAIT_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            except OSError as error:  # a file system without locks
                raise _unusable(error) from error
            else:
                return
            if time.monotonic() >= ends_s:
                raise StartupError(f"another process has been copying from {self.url} for {_WAIT_S:g} s; see its log")
            time.sleep(_PAUSE_S)

    def _download(self, version: int) -> None:
        try:
            verified_folder.sweep(self.folder)  # what killed processes left
            verified_folder.place(
                self._path(version),
                fill=lambda scratch: self.bucket.download(version, scratch),
                check=_verify,
                what="the copy",
            )
        except DamageError as error:
            reason = "manifest" if error.reason == "format" else error.reason
            raise RefusedVersionError(
                reason,
                f"{self.url}/{version} is not a usable policy ({reason}): {error.detail}; upload it again, or use"
                " another version",
                detail=f"{error.detail}; upload it again",
            ) from error
        except OSError as error:
            raise _unusable(error) from error


def _verify(path: Path) -> None:
    verified_folder.verify(path, format_version=FORMAT_VERSION, belongs=belongs)


def _unusable(error: OSError) -> StartupError:
    problem = error.strerror or error  # of the copy, it has its name
    return StartupError(
        f"cannot keep copies of policies in a bucket: {f'{error.filename}: ' if error.filename else ''}{problem}; set"
        " XDG_CACHE_HOME to a writable folder with free space"
    )
