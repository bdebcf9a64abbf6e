"""The settings of locks: TLS, tokens, plain text. Which combinations are impossible, and what an address may be."""

import dataclasses
import ipaddress
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from serving.errors import StartupError
from serving.sockets import Address, TcpAddress, bind_error

PAGE = "docs/security.md"


@dataclasses.dataclass(frozen=True)
class TlsFiles:
    """The files of TLS, in PEM format. The names of their flags are those of `ServeConfig`, such as --tls-cert."""

    cert: Path
    key: Path
    client_ca: Path | None = None
    """Signs the certificates that clients need; None: clients need none."""


class LockSettings(Protocol):
    """The settings of locks, as `ServeConfig` has them."""

    @property
    def address(self) -> Address: ...  # noqa: D102  as ServeConfig says
    @property
    def admin(self) -> str: ...  # noqa: D102
    @property
    def insecure(self) -> bool: ...  # noqa: D102
    @property
    def metrics_host(self) -> str: ...  # noqa: D102
    @property
    def reflection(self) -> bool: ...  # noqa: D102
    @property
    def tls_cert(self) -> Path | None: ...  # noqa: D102
    @property
    def tls_key(self) -> Path | None: ...  # noqa: D102
    @property
    def tls_client_ca(self) -> Path | None: ...  # noqa: D102
    @property
    def tokens(self) -> Path | None: ...  # noqa: D102


def tls_files(settings: LockSettings) -> TlsFiles | None:
    """Return the files of TLS; None: connections are not encrypted."""
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    return TlsFiles(settings.tls_cert, settings.tls_key, settings.tls_client_ca)


def impossible(settings: LockSettings, *, admin: Address | None) -> str:
    """Return what is wrong with a combination of settings, in one line; empty if nothing is.

    Args:
        settings: of locks.
        admin: the address for operators, if --admin gives one.
    """
    if settings.tls_cert and not settings.tls_key:
        return f"--tls-cert {settings.tls_cert} needs the key of the certificate; add --tls-key FILE"
    if settings.tls_key and not settings.tls_cert:
        return f"--tls-key {settings.tls_key} needs the certificate of the key; add --tls-cert FILE"
    if settings.tls_client_ca and not settings.tls_cert:
        return f"--tls-client-ca {settings.tls_client_ca} needs TLS; add --tls-cert FILE and --tls-key FILE"
    if settings.reflection and (settings.tls_client_ca or settings.tokens):
        lock = "--tls-client-ca" if settings.tls_client_ca else "--tokens"
        return f"--reflection describes the services to every caller, so it cannot be used beside {lock}; leave it out"
    if isinstance(admin, TcpAddress) and (problem := _admin_problem(settings)):
        return f"--admin {admin} is a port, which needs {problem}; or leave out --admin, for a Unix socket"
    return _host_problem(settings.metrics_host)


def _admin_problem(settings: LockSettings) -> str:
    if not settings.tls_cert:
        return "TLS: add --tls-cert FILE and --tls-key FILE"
    return "" if settings.tokens else "a token with the role admin: add --tokens FILE"


def _host_problem(host: str) -> str:
    with_port = ":" in host and not _is_ip(host)  # an IPv6 address has colons, too
    if host and not with_port:
        return ""
    return (
        f"--metrics-host must be a host without a port, got {host!r}; use 127.0.0.1 for this machine only, 0.0.0.0 for"
        " every network"
    )


def require_locks(settings: LockSettings, addresses: Mapping[str, Address]) -> list[str]:
    """Return warnings about plain text that --insecure allows, each in one line.

    Args:
        settings: of locks.
        addresses: for robots, by the flag that gives them.

    Raises:
        StartupError: other machines can connect to one in plain text, and --insecure does not allow it.
    """
    if tls_files(settings):
        return []
    ports = {flag: each for flag, each in addresses.items() if isinstance(each, TcpAddress)}
    plain = {flag: address for flag, address in ports.items() if not is_loopback(address, flag=flag)}
    for flag, address in plain.items():
        if not settings.insecure:
            raise StartupError(
                f"{flag} {address} accepts plain text from other machines; encrypt connections with --tls-cert FILE and"
                f" --tls-key FILE, as {PAGE} shows, or allow plain text with --insecure (KILOLAYER_INSECURE=true)"
            )
    return [
        f"connections to {address} are not encrypted, because --insecure allows plain text; on a network that others"
        f" use, {PAGE} shows how to use TLS"
        for address in plain.values()
    ]


def is_loopback(address: TcpAddress, *, flag: str) -> bool:
    """Return whether only programs of this machine can connect to `address`, which `flag` gives.

    Raises:
        StartupError: its host does not resolve.
    """
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # UnicodeError: no host can have this name
        raise bind_error(flag, address) from error
    return all(_is_loopback(str(each[4][0])) for each in found)


def _is_loopback(host: str) -> bool:
    address = ipaddress.ip_address(host.partition("%")[0])  # without the name of an interface
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
