"""The files of TLS, in PEM format: what they must contain, and whether they fit each other."""

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import PublicKeyAlgorithmOID

from serving.errors import StartupError
from serving.lock_settings import TlsFiles

_MAX_BYTES = 4 << 20  # of a file; the roots of a whole system are 0.2 MB
_CERTIFICATE, _KEY, _CLIENT_CA = "--tls-cert", "--tls-key", "--tls-client-ca"
# With other keys, gRPC starts and refuses every client, or does not start and gives no reason.
_CURVES = (ec.SECP256R1, ec.SECP384R1)
_MIN_RSA_BITS = 1024


class Pem(NamedTuple):
    """The contents of the files, which fit each other."""

    cert: bytes
    key: bytes
    client_ca: bytes | None

    def __repr__(self) -> str:
        """Show no content, so that no log or traceback can hold the key."""
        return f"Pem(client_ca={'None' if self.client_ca is None else '...'})"


def read(files: TlsFiles) -> Pem:
    """Read the files and check that they fit each other.

    Raises:
        StartupError: one cannot be used; the message names it and says what is wrong.
    """
    cert, key = _content(_CERTIFICATE, files.cert), _content(_KEY, files.key)
    client_ca = None if files.client_ca is None else _content(_CLIENT_CA, files.client_ca)
    first, *_ = _certificates(_CERTIFICATE, files.cert, cert)
    if _public_key(files.key, key) != first.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo):
        raise StartupError(
            f"{_KEY} {files.key} is not the key of the first certificate in {_CERTIFICATE} {files.cert}; name the pair"
            " that was made together, and put the server's own certificate first"
        )
    if not _is_usable(first):
        raise StartupError(
            f"{_CERTIFICATE} {files.cert} has a key of a kind that gRPC does not use; make one for the curve P-256 or"
            " P-384, or for RSA with 2048 bits, and a certificate for it"
        )
    if files.client_ca and client_ca is not None:
        _certificates(_CLIENT_CA, files.client_ca, client_ca)
    return Pem(cert, key, client_ca)


def warnings(files: TlsFiles, pem: Pem, *, now: datetime.datetime) -> list[str]:
    """Return what is wrong with certificates that can be used, each in one line: those that are not valid at `now`."""
    found = list(_dates(_CERTIFICATE, files.cert, pem.cert, now=now))
    if files.client_ca and pem.client_ca:
        found += _dates(_CLIENT_CA, files.client_ca, pem.client_ca, now=now)
    return found


def _content(flag: str, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES)
    except OSError as error:
        raise StartupError(f"{flag} {path} cannot be read: {error.strerror}") from error


def _certificates(flag: str, path: Path, raw: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(raw)
    except ValueError as error:
        problem = "is damaged" if b"BEGIN CERTIFICATE" in raw else "has no certificate"
        raise StartupError(
            f"{flag} {path} {problem}; it must be in PEM format, with the line -----BEGIN CERTIFICATE-----"
        ) from error


def _public_key(path: Path, raw: bytes) -> bytes:
    """Return the public part of the private key in `raw`, as it is in a certificate."""
    try:
        key = load_pem_private_key(raw, password=None)
    except TypeError as error:  # it needs a password
        raise StartupError(
            f"{_KEY} {path} is encrypted, and the server asks for no password; decrypt it with openssl pkey -in {path}"
            " -out FILE, and let only the server's user read the result"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        problem = "is damaged, or of an unknown kind" if b"PRIVATE KEY" in raw else "has no private key"
        raise StartupError(
            f"{_KEY} {path} {problem}; it must be in PEM format, with the line -----BEGIN PRIVATE KEY-----"
        ) from error
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _is_usable(certificate: x509.Certificate) -> bool:
    """Return whether gRPC can use the key of a certificate."""
    key = certificate.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey):
        return isinstance(key.curve, _CURVES)
    is_pss = certificate.public_key_algorithm_oid == PublicKeyAlgorithmOID.RSASSA_PSS
    return isinstance(key, rsa.RSAPublicKey) and key.key_size >= _MIN_RSA_BITS and not is_pss


def _dates(flag: str, path: Path, raw: bytes, *, now: datetime.datetime) -> Iterator[str]:
    """Yield a warning for each certificate that is not valid at `now`."""
    for each in x509.load_pem_x509_certificates(raw):
        if each.not_valid_after_utc < now:
            yield f"{flag} {path} has a certificate that expired at {each.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        elif each.not_valid_before_utc > now:
            begin = each.not_valid_before_utc
            yield f"{flag} {path} has a certificate that is not valid before {begin:%Y-%m-%d %H:%M} UTC"
