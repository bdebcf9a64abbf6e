"""Copies: verified copies of the versions in a bucket, in a folder of the user's cache.

A copy is complete or not there: it is downloaded beside its place, compared with its manifest, and renamed. Several
processes share the folder, workers and other servers. Each version has a lock: whoever reads a copy shares it, and
whoever makes or removes one holds it alone. The system releases the locks of a process that ends, however it ends.
"""

import contextlib
import dataclasses
import fcntl
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from policy import published, verified_folder
from policy.published import DESCRIPTION, FORMAT_VERSION, MANIFEST, belongs
from policy.verified_folder import MAX_MANIFEST_BYTES, DamageError
from serving.errors import RefusedVersionError, StartupError
from serving.policies.bucket import Bucket

_LOGGER = logging.getLogger(__name__)

_SPARE = 3  # copies beside those of loaded versions, for a restart
_DESCRIPTIONS = "descriptions"
# A copy, its lock, and what a killed process left of one.
_OF_VERSION = re.compile(r"(?:\.(?:lock|writing|deleting|replaced)-)?([0-9]{1,18})(?:-.*)?")
_WAIT_S, _PAUSE_S = 600.0, 0.05  # for another process that copies the same version
_REQUESTS = 8  # for small files, at the same time


@dataclasses.dataclass(frozen=True)
class Copies:
    """Copies of the versions in `bucket`, in `folder`, where each has the name of its version."""

    bucket: Bucket
    folder: Path

    @contextlib.contextmanager
    def held(self, version: int) -> Generator[Path]:
        """Yield the copy of a version, which is made if there is none. It is not removed before the context ends.

        Raises:
            RefusedVersionError: the files in the bucket are not those of the manifest there.
            BucketError: the bucket cannot be read.
            StartupError: the copy cannot be written, or another process makes it and does not finish.
        """
        path = self.folder / str(version)
        while True:
            with self._locked(version, fcntl.LOCK_SH):
                if path.is_dir():
                    os.utime(path)  # copies that were used longer ago are removed first
                    yield path
                    return
            with self._locked(version, fcntl.LOCK_EX):
                if not path.is_dir():
                    self._copy(version, path)

    def describe(self, versions: Sequence[int]) -> dict[int, Path]:
        """Return a folder for each version with its policy.json and its manifest; not there if it is incomplete.

        Those of all other versions are removed.

        Raises:
            BucketError, StartupError: as `held`.
        """
        with ThreadPoolExecutor(_REQUESTS) as executor:
            described = dict(zip(versions, executor.map(self._describe, versions), strict=True))
        parent, kept = self.folder / _DESCRIPTIONS, set(described.values())
        for entry in parent.iterdir() if parent.is_dir() else ():
            if entry not in kept:
                shutil.rmtree(entry, ignore_errors=True)  # another process may do the same
        return described

    def discard(self, version: int) -> None:
        """Remove the copy of a version, so that it is copied anew when it is needed. No effect while it is read."""
        try:
            lock = self._lock(version, fcntl.LOCK_EX, wait_s=0.0)
            if lock is not None:
                self._remove(version, lock)
        except (OSError, StartupError) as error:
            _LOGGER.warning("cannot remove the copy of %s/%d: %s", self.bucket.url, version, error)

    def sweep(self, needed: Collection[int]) -> None:
        """Remove copies until those of `needed` and a few others are left, first those that were used longest ago."""
        used: dict[int, float] = {}
        for entry in self.folder.iterdir() if self.folder.is_dir() else ():
            if found := _OF_VERSION.fullmatch(entry.name):
                with contextlib.suppress(FileNotFoundError):  # another process has just removed it
                    used[int(found[1])] = max(used.get(int(found[1]), 0.0), entry.stat().st_mtime)
        others = sorted(used.keys() - needed, key=used.__getitem__, reverse=True)
        for version in others[_SPARE:]:
            self.discard(version)

    def _remove(self, version: int, lock: int) -> None:
        """Remove everything of a version, whose lock is held, and close the lock."""
        try:
            path = self.folder / str(version)
            if path.is_dir():
                verified_folder.remove(path)
            for left in self.folder.glob(f".*-{version}-*"):  # of a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            self._lock_path(version).unlink()
        finally:
            os.close(lock)

    def _describe(self, version: int) -> Path:
        """Return the folder with the policy.json and the manifest of a version; there is none if it is incomplete."""
        folder = self.folder / _DESCRIPTIONS / str(version)
        if folder.is_dir():
            return folder
        try:
            manifest = self.bucket.read(version, MANIFEST, most_bytes=MAX_MANIFEST_BYTES)
            description = self.bucket.read(version, DESCRIPTION, most_bytes=published.MAX_DESCRIPTION_BYTES)
        except DamageError:  # which is found again, and named, when the version is copied
            return folder
        if manifest is None or description is None:
            return folder

        def fill(scratch: Path) -> None:
            (scratch / MANIFEST).write_bytes(manifest)
            (scratch / DESCRIPTION).write_bytes(description)

        with self._locked(version, fcntl.LOCK_EX):
            if not folder.is_dir():
                self._place(folder, fill=fill, check=lambda _: None)
        return folder

    def _copy(self, version: int, path: Path) -> None:
        def check(scratch: Path) -> None:
            verified_folder.verify(scratch, format_version=FORMAT_VERSION, belongs=belongs)

        try:
            self._place(path, fill=lambda scratch: self.bucket.download(version, scratch), check=check)
        except DamageError as error:
            reason = "manifest" if error.reason == "format" else error.reason
            raise RefusedVersionError(
                reason,
                f"{self.bucket.url}/{version} is not a usable policy ({reason}): {error.detail}; upload it again, or"
                " use another version",
            ) from error

    def _place(self, folder: Path, *, fill: Callable[[Path], None], check: Callable[[Path], None]) -> None:
        try:
            verified_folder.place(folder, fill=fill, check=check, what="the copy")
        except OSError as error:
            raise _unwritable(error) from error

    @contextlib.contextmanager
    def _locked(self, version: int, kind: int) -> Generator[None]:
        """Hold the lock of a version, LOCK_SH or LOCK_EX, in the context."""
        lock = self._lock(version, kind, wait_s=_WAIT_S)
        if lock is None:
            raise StartupError(
                f"another process has been copying {self.bucket.url}/{version} for {_WAIT_S:g} s; see its log"
            )
        try:
            yield
        finally:
            os.close(lock)

    def _lock(self, version: int, kind: int, *, wait_s: float) -> int | None:
        """Return a descriptor that holds the lock of a version; None: another process holds it for `wait_s`."""
        path, ends_s = self._lock_path(version), time.monotonic() + wait_s
        while True:
            try:
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            except OSError as error:
                raise _unwritable(error) from error
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                fcntl.flock(lock, kind | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(lock), path.stat()):  # otherwise it has just been removed
                    return lock
            os.close(lock)
            if time.monotonic() >= ends_s:
                return None
            time.sleep(_PAUSE_S)

    def _lock_path(self, version: int) -> Path:
        return self.folder / f".lock-{version}"


def _unwritable(error: OSError) -> StartupError:
    return StartupError(
        f"policies of a bucket cannot be kept on this machine: {error}; set XDG_CACHE_HOME to a writable folder with"
        " free space"
    )
