"""Tls: whom a client trusts and how it proves who it is, as files or PEM bytes."""

from __future__ import annotations

import dataclasses
import os
import ssl
from pathlib import Path
from typing import Union

import grpc

Pem = Union[str, "os.PathLike[str]", bytes, None]  # a path, or the content

_BEGIN = b"-----BEGIN "
_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
_KEY = b"PRIVATE KEY-----"
_MAX_BYTES = 4_000_000  # the roots of a system are about 200 kB


@dataclasses.dataclass(frozen=True, repr=False)
class Tls:
    """A connection with TLS. Files are read when the client is made, so new ones need a new client.

    Args:
        ca: certificates of the authorities that the client trusts: a path, or PEM bytes. None: the public authorities
            that gRPC comes with.
        cert: the client's own certificate, for a server that requires one, with any intermediate ones after it.
        key: the private key of `cert`, without a passphrase. Whether it belongs to `cert` is checked for files only.

    Raises:
        ValueError: only one of `cert` and `key` was given.
    """

    ca: Pem = None
    cert: Pem = None
    key: Pem = None

    def __post_init__(self) -> None:
        """Check that `cert` and `key` come together."""
        if (self.cert is None) != (self.key is None):
            given, missing = ("cert", "key") if self.key is None else ("key", "cert")
            raise ValueError(
                f"Tls.{missing} (KILOLAYER_TLS_CLIENT_{missing.upper()}) must be given with Tls.{given}:"
                " a certificate needs its private key"
            )

    def __repr__(self) -> str:
        """Return the paths, without the content of PEM bytes."""
        return f"Tls(ca={_shown(self.ca)}, cert={_shown(self.cert)}, key={_shown(self.key)})"

    def credentials(self) -> grpc.ChannelCredentials:
        """Return the credentials for a channel.

        Raises:
            ValueError: a file cannot be read, is not PEM, or `cert` and `key` do not belong together (checked for
                files only). The message names the file and never its content.
        """
        ca = None if self.ca is None else _certificates("ca", self.ca)
        if self.cert is None or self.key is None:
            return grpc.ssl_channel_credentials(ca)
        cert, key = _certificates("cert", self.cert), _key(self.key)
        _check_pair(self.cert, self.key)
        return grpc.ssl_channel_credentials(ca, key, cert)


def _certificates(name: str, pem: Pem) -> bytes:
    content = _read(name, pem)
    if _CERTIFICATE not in content:
        raise ValueError(f"{_source(name, pem)} must hold a certificate in PEM, '-----BEGIN CERTIFICATE-----'")
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=content.decode("ascii", "ignore"))
    except ssl.SSLError:  # its text says no more than that
        raise ValueError(f"{_source(name, pem)} is damaged: a certificate in it cannot be read") from None
    return content


def _key(pem: Pem) -> bytes:
    content = _read("key", pem)
    if _BEGIN not in content or _KEY not in content:
        raise ValueError(f"{_source('key', pem)} must hold a private key in PEM, '-----BEGIN PRIVATE KEY-----'")
    if b"ENCRYPTED" in content:
        raise ValueError(
            f"{_source('key', pem)} has a passphrase, which a client cannot ask for; remove it with openssl pkey"
        )
    return content


def _check_pair(cert: Pem, key: Pem) -> None:
    """Raise ValueError if the two do not belong together. Python checks files only, and a key is never written here."""
    if isinstance(cert, bytes) or isinstance(key, bytes) or cert is None or key is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(_path(cert), _path(key))
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            problem = f"is not the key of {_source('cert', cert)}"
        else:
            problem = f"and {_source('cert', cert)} cannot be used ({error.reason or 'no reason given'})"
        raise ValueError(f"{_source('key', key)} {problem}") from None


def _read(name: str, pem: Pem) -> bytes:
    if isinstance(pem, bytes):
        return pem
    if not isinstance(pem, (str, os.PathLike)):
        raise ValueError(f"Tls.{name} must be a path or PEM bytes, got {type(pem).__name__}")
    if "-----BEGIN" in str(pem):  # the message must not repeat it
        raise ValueError(f"Tls.{name} must be a path or PEM bytes, got PEM as a string; pass it as bytes")
    try:
        with _path(pem).open("rb") as file:
            return file.read(_MAX_BYTES)
    except (OSError, ValueError) as error:  # ValueError: NUL or a lone surrogate in the path
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        raise ValueError(f"{_source(name, pem)} cannot be read: {reason}") from None


def _path(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.expanduser(path))  # noqa: PTH111  Path's own raises RuntimeError for an unknown user


def _source(name: str, pem: Pem) -> str:
    """Return the words for an error: the argument, and its file if it is one."""
    return f"Tls.{name}, PEM bytes," if isinstance(pem, bytes) else f"Tls.{name}, the file {os.fspath(pem or '')!r},"


def _shown(pem: Pem) -> str:
    if pem is None:
        return "None"
    return "<PEM>" if isinstance(pem, bytes) or _BEGIN.decode() in str(pem) else repr(str(pem))
