"""TLS for HTTP connections: `TlsLayer`, between the bytes of a connection and its `HttpConnection`.

The event loop has TLS, too. But it passes a reply on without saying whether the peer has received it, so a peer that
reads nothing would hold replies that nobody counts; and connections would count only after their handshake. Here the
`HttpConnection` exists from the beginning: its timer for the first headers also limits the handshake.
"""

import asyncio
import contextlib
import logging
import os
import ssl
from collections.abc import Generator
from typing import Any, cast

from serving.access.handshakes import HandshakeFailures
from serving.access.pem import Pem
from serving.access.tls import Certificates
from serving.errors import StartupError

_LOGGER = logging.getLogger(__name__)


class TlsContexts:
    """The context of new connections, which follows the certificates.

    Args:
        certificates: of the server.

    Raises:
        StartupError: OpenSSL refuses them.
    """

    def __init__(self, certificates: Certificates) -> None:
        self._certificates = certificates
        self._pem = certificates.current
        try:
            self._context = _context(self._pem)
        except ssl.SSLError as error:
            raise StartupError(f"--tls-cert cannot be used for --http-port: {error.reason}") from error

    def fetch(self) -> ssl.SSLContext:
        """Return the context for a new connection, after a look at the files."""
        self._certificates.fetch()
        if (pem := self._certificates.current) is not self._pem:
            self._pem = pem
            try:
                self._context = _context(pem)
            except ssl.SSLError as error:
                _LOGGER.error("--http-port keeps the certificate that was read before: %s", error.reason)
        return self._context


def _context(pem: Pem) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # A resumed session would not check the certificate of the client again. TLS 1.3 resumes by tickets only, and there
    # are none. TLS 1.2 also resumes by the session's number, which the library cannot turn off.
    context.minimum_version = ssl.TLSVersion.TLSv1_2 if pem.client_ca is None else ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    context.set_alpn_protocols(["http/1.1"])
    with _file(pem.cert) as cert, _file(pem.key) as key:
        context.load_cert_chain(cert, key)
    if pem.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # as gRPC: an authority need not be a root
        context.load_verify_locations(cadata=pem.client_ca.decode("ascii", "ignore"))
    return context


@contextlib.contextmanager
def _file(content: bytes) -> Generator[str]:
    """Yield the path of `content` in memory: the library takes only files, and those on disk may have changed."""
    descriptor = os.memfd_create("pem")
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


class TlsLayer(asyncio.BufferedProtocol, asyncio.Transport):
    """The protocol of a TCP connection, and the transport of the HTTP connection inside of it.

    Args:
        connection: gets what is decrypted.
        context: of TLS.
        buffer: receives what arrives, encrypted and decrypted; each user copies its part immediately.
        failures: count the handshakes that fail.
    """

    def __init__(
        self,
        connection: asyncio.BufferedProtocol,
        context: ssl.SSLContext,
        *,
        buffer: memoryview,
        failures: HandshakeFailures,
    ) -> None:
        super().__init__()
        self._connection = connection
        self._buffer = buffer
        self._failures = failures
        self._loop = asyncio.get_running_loop()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._is_open = False  # whether the handshake is complete
        self._is_paused = False
        self._has_ended = False  # whether nothing is sent any more, so that what arrives is discarded

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the connection; nothing can be sent before the handshake."""
        self._below = cast("asyncio.Transport", transport)
        self._connection.connection_made(self)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  the library's name
        """Return where to put what arrives."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Decrypt what has arrived."""
        if self._has_ended or self.is_closing():
            return
        self._incoming.write(self._buffer[:nbytes])
        if self._is_open or self._shake_hands():
            self._pass_on()

    def pause_writing(self) -> None:
        """The peer has not received everything yet."""
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """The peer, or the kernel, has received everything."""
        self._connection.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the HTTP connection."""
        self._is_open = False
        self._connection.connection_lost(exc)

    def _shake_hands(self) -> bool:
        """Go on with the handshake. Return whether it is complete."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return False
        except ssl.SSLError as error:
            self._failures.count(error.reason or "", getattr(error, "verify_message", "") or "")
            self._flush()  # the alert, which says why
            self._below.close()
            return False
        self._flush()
        self._is_open = True
        return True

    def _pass_on(self) -> None:
        """Give the HTTP connection what has arrived for it, until it pauses."""
        while self._is_open and not (self._is_paused or self._has_ended):
            try:
                size = self._tls.read(len(self._buffer), cast("Any", self._buffer))
            except ssl.SSLWantReadError:
                break
            except ssl.SSLError:
                self._flush()
                self.abort()
                return
            if not size:  # the peer sends nothing more
                self.close()
                return
            self._connection.buffer_updated(cast("int", size))
        self._flush()

    def _flush(self) -> None:
        if self._outgoing.pending and not self._below.is_closing():
            self._below.write(self._outgoing.read())

    # What the HTTP connection calls.

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send `data`; nothing can be sent before the handshake."""
        left = memoryview(data)
        while self._is_open and left:
            left = left[self._tls.write(left) :]
        self._flush()

    def can_write_eof(self) -> bool:
        """Return whether the end can be sent before the connection is closed."""
        return self._below.can_write_eof()

    def write_eof(self) -> None:
        """Send that nothing more comes, and discard what arrives."""
        self._say_end()
        self._has_ended = True
        self._below.write_eof()

    def close(self) -> None:
        """Close the connection, once everything is sent."""
        self._say_end()
        self._is_open = False
        self._below.close()

    def abort(self) -> None:
        """Close the connection now."""
        self._is_open = False
        self._below.abort()

    def _say_end(self) -> None:
        if self._is_open:
            with contextlib.suppress(ssl.SSLError):  # it would wait for the end of the peer
                self._tls.unwrap()
            self._flush()

    def is_closing(self) -> bool:
        """Return whether the connection is closed or being closed."""
        return self._below.is_closing()

    def pause_reading(self) -> None:
        """Pass nothing on, and receive nothing."""
        self._is_paused = True
        self._below.pause_reading()

    def resume_reading(self) -> None:
        """Pass on what has arrived, and receive again."""
        self._is_paused = False
        self._below.resume_reading()
        self._loop.call_soon(self._pass_on)  # the caller may be in the middle of what came before

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set when `pause_writing` and `resume_writing` are called."""
        self._below.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """Return how many bytes, encrypted, are not sent yet."""
        return self._below.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return a fact about the connection, such as its peername."""
        return self._below.get_extra_info(name, default)
