"""Certificates for the tests of TLS: authorities, and files of servers and clients that they sign."""

import dataclasses
import datetime
from pathlib import Path

import grpc
import trustme

from serving.lock_settings import TlsFiles

NOW = datetime.datetime(2026, 7, 1, 12, tzinfo=datetime.UTC)
HOUR = datetime.timedelta(hours=1)


@dataclasses.dataclass(frozen=True)
class Identity:
    """A certificate and its key."""

    cert: bytes
    key: bytes


class Authority:
    """Signs certificates."""

    def __init__(self) -> None:
        self._ca = trustme.CA(key_type=trustme.KeyType.ECDSA)
        self.cert = self._ca.cert_pem.bytes()

    def sign(self, *hosts: str, not_after: datetime.datetime | None = None) -> Identity:
        """A certificate for `hosts`, until `not_after`."""
        made = self._ca.issue_cert(
            *(hosts or ("localhost", "127.0.0.1")),
            not_before=not_after and not_after - HOUR,
            not_after=not_after,
            key_type=trustme.KeyType.ECDSA,
        )
        return Identity(b"".join(each.bytes() for each in made.cert_chain_pems), made.private_key_pem.bytes())


def write(folder: Path, identity: Identity, *, client_ca: bytes | None = None) -> TlsFiles:
    """Write the files of a server."""
    files = TlsFiles(folder / "server.pem", folder / "server.key", None if client_ca is None else folder / "ca.pem")
    files.cert.write_bytes(identity.cert)
    files.key.write_bytes(identity.key)
    if files.client_ca and client_ca:
        files.client_ca.write_bytes(client_ca)
    return files


def credentials(ca: bytes, identity: Identity | None = None) -> grpc.ChannelCredentials:
    """What a client takes that trusts `ca` and has the certificate `identity`."""
    if identity is None:
        return grpc.ssl_channel_credentials(ca)
    return grpc.ssl_channel_credentials(ca, identity.key, identity.cert)
