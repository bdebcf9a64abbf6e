"""HandshakeFailures: counts the TLS handshakes that fail, by reason, and logs why.

gRPC refuses the client and tells a program nothing. It only writes a line to stderr, if its log has the level INFO.
The line has the reason, not the address of the client. A client that refuses the server, for example because it trusts
another authority, closes the connection, and there is no line. Connections that this process makes itself, for example
to a collector of spans, count too.
"""

import logging
import math
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping

from serving.telemetry import native_lines

_LOGGER = logging.getLogger(__name__)
_VARIABLE, LEVEL = "GRPC_VERBOSITY", "INFO"
_LOG_EVERY_S = 10.0  # about each reason: any program that can connect may cause lines
_MAX_OTHERS = 50  # lines that are not about handshakes, in the same time
_FAILED = re.compile(r"Handshake failed with error .*OPENSSL_internal:(\w+)(?:: (.*))?")
_OF_GRPC = re.compile(r"I\d{4} \d\d:\d\d:\d\d\.\d+ |.* log\.cc:\d+\] Log level INFO")
_OTHER = "other"
_TEXTS = {
    "plain_text": "the client speaks plain text; it needs TLS",
    "no_client_certificate": "the client has no certificate",
    "expired_client_certificate": "the client's certificate has expired, or is not valid yet",
    "untrusted_client_certificate": "no authority in --tls-client-ca has signed the client's certificate",
    "protocol": "the client speaks no version or cipher of TLS that the server speaks",
    "refused_by_client": "the client refuses the server's certificate",
    _OTHER: "another reason",
}
REASONS = tuple(_TEXTS)
"""Why a handshake failed, in one word for metrics."""
_REASONS = {
    "WRONG_VERSION_NUMBER": "plain_text",
    "HTTP_REQUEST": "plain_text",
    "HTTPS_PROXY_REQUEST": "plain_text",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "no_client_certificate",
    "CERTIFICATE_VERIFY_FAILED": "untrusted_client_certificate",
    "UNSUPPORTED_PROTOCOL": "protocol",
    "NO_SHARED_CIPHER": "protocol",
    "NO_COMMON_SIGNATURE_ALGORITHMS": "protocol",
}


class HandshakeFailures:
    """Counts what it reads.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()  # that `take` has not returned
        self._unlogged: Counter[str] = Counter()
        self._logged_s: dict[str, float] = {}  # when, by reason
        self._others_s, self._others = -math.inf, 0  # when lines of others began to be counted, and how many came since

    def read(self, line: str) -> None:
        """Read a line that a native library wrote to stderr. One that is not gRPC's becomes a line of the log."""
        if found := _FAILED.search(line):
            self._count(_reason(found[1], found[2] or ""), word=found[1])
        elif line.strip() and not _OF_GRPC.match(line):
            self._log_other(line)

    def take(self) -> Mapping[str, int]:
        """Return how many handshakes have failed since the last call, by reason."""
        with self._lock:
            taken, self._counts = self._counts, Counter()
        return taken

    def _count(self, reason: str, *, word: str) -> None:
        with self._lock:
            self._counts[reason] += 1
            self._unlogged[reason] += 1
            now_s = self._clock()
            if now_s - self._logged_s.get(reason, -_LOG_EVERY_S) < _LOG_EVERY_S:
                return
            self._logged_s[reason] = now_s
            count = self._unlogged.pop(reason)
        text = f"{_TEXTS[reason]} ({word})" if reason == _OTHER else _TEXTS[reason]
        _LOGGER.warning("refused %s: %s", "a TLS connection" if count == 1 else f"{count} TLS connections", text)

    def _log_other(self, line: str) -> None:
        """Log a line of another library, or an error of gRPC, unless there were many: peers may cause them."""
        now_s = self._clock()
        if now_s - self._others_s >= _LOG_EVERY_S:
            self._others_s, self._others = now_s, 0
        self._others += 1
        if self._others <= _MAX_OTHERS:
            _LOGGER.warning("a native library says: %s", line)


FAILURES = HandshakeFailures()
"""Those of this process."""


def watch() -> None:
    """Count the failures of this process in `FAILURES`, if gRPC writes them; see `prepare`.

    The log has no handler after this: `sys.stderr` is another file, and lines that still wait belong to the former one.
    """
    logging.basicConfig(handlers=[logging.NullHandler()], force=True)  # the former handlers write what waits
    if os.environ.get(_VARIABLE) == LEVEL:
        native_lines.capture(FAILURES.read)


def prepare() -> None:
    """Let gRPC write why handshakes fail, unless the user has chosen a level. gRPC reads it when it is imported."""
    os.environ.setdefault(_VARIABLE, LEVEL)


def _reason(word: str, detail: str) -> str:
    """Return the reason for a word of the TLS library, such as CERTIFICATE_VERIFY_FAILED, and its detail."""
    if "ALERT" in word:
        return "refused_by_client"
    if word == "CERTIFICATE_VERIFY_FAILED" and ("expired" in detail or "not yet valid" in detail):
        return "expired_client_certificate"
    return _REASONS.get(word, _OTHER)
