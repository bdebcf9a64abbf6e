"""Certificates: the files of TLS, read again when they change.

Each new connection asks for them (`Certificates.fetch`), so a replaced certificate is used from the next connection on,
and the open ones go on. Kubernetes replaces all files at the same time, through a symbolic link; other programs write
one after the other. Files that cannot be used, such as a certificate whose key is not there yet, change nothing: the
log says why, once, and they are read again at a later connection: once they have changed again, or after a second.
"""

import contextlib
import datetime
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from serving.errors import StartupError
from serving.lock_settings import TlsFiles

if TYPE_CHECKING:
    from serving.access.pem import Pem

_LOGGER = logging.getLogger(__name__)

_AGAIN_S = 1.0  # after which files that cannot be used are read again, even if they seem to be the same

_Version: TypeAlias = tuple[tuple[int, int, int, int] | None, ...]


class Certificates:
    """The certificate of the server, its key, and the authorities of its clients.

    Args:
        files: where they are.
        wall_clock: seconds since 1970, for the dates in certificates.
        clock: monotonic seconds.

    Raises:
        StartupError: a file cannot be used; the message names it and says what is wrong.
    """

    def __init__(
        self,
        files: TlsFiles,
        *,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from serving.access import pem  # it takes 0.2 s to import, and only TLS needs it

        self._pem = pem
        self._files = files
        self._wall_clock = wall_clock
        self._clock = clock
        self._lock = threading.Lock()
        self._version = _version(files)
        self._problem = ""  # of the files as they are now; empty: they are in use
        self._failed, self._failed_s = self._version, 0.0  # the files of the problem, and when they were read
        self.current = pem.read(files)
        """What is in use."""

    @property
    def requires_client_certificate(self) -> bool:
        """Whether a client without a certificate is refused."""
        return self._files.client_ca is not None

    def warnings(self) -> list[str]:
        """Return what is wrong with the certificates although they can be used, each in one line."""
        return self._pem.warnings(
            self._files, self.current, now=datetime.datetime.fromtimestamp(self._wall_clock(), datetime.UTC)
        )

    def fetch(self) -> "Pem | None":
        """Return what to use from now on if the files have changed; None: what was used before.

        Called for every new connection, in threads of gRPC.
        """
        with self._lock:
            version = _version(self._files)
            if version == self._version and not self._problem:
                return None
            if self._problem and version == self._failed and self._clock() - self._failed_s < _AGAIN_S:
                return None  # reading takes milliseconds, and any program may connect thousands of times
            try:
                pem = self._pem.read(self._files)
            except StartupError as error:
                self._failed, self._failed_s = version, self._clock()
                self._keep(str(error))
                return None
            self._version, self._problem = version, ""
            if pem == self.current:
                return None
            self.current = pem
        _LOGGER.info("the certificate in %s is in use from now on", self._files.cert)
        for warning in self.warnings():
            _LOGGER.warning("%s", warning)
        return pem

    def _keep(self, problem: str) -> None:
        """Keep what is in use, because of `problem`, and log that, unless the last line was about the same."""
        if problem != self._problem:
            _LOGGER.error("the certificate that was read before stays in use: %s", problem)
        self._problem = problem


def _version(files: TlsFiles) -> _Version:
    """Return what differs once a file has changed: the number of the file, its time and its size; None: no file."""
    return tuple(_version_of(path) for path in (files.cert, files.key, files.client_ca) if path)


def _version_of(path: Path) -> tuple[int, int, int, int] | None:
    with contextlib.suppress(OSError):
        about = path.stat()  # of the file at the end of symbolic links
        return about.st_dev, about.st_ino, about.st_mtime_ns, about.st_size
    return None
