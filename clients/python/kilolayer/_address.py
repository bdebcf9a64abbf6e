"""Addresses of servers: what a caller may write, what gRPC makes of it, and whether a proxy stands in between."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
import urllib.parse
from collections.abc import Mapping
from typing import Union

EXAMPLE = "localhost:50051"

_UNIX, _UNIX_ABSTRACT = "unix:", "unix-abstract:"
_UNIX_EXAMPLE = "unix:/run/kilolayer.sock"
_MAX_SOCKET_PATH_BYTES = 107  # of the kernel
_DNS = "dns:///"
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
# A host may have one of these names, so `dns:50051` is a host and a port.
_OTHER_SCHEME = re.compile(r"(?P<scheme>dns|grpcs?|https?|ipv4|ipv6|tcp|vsock|xds):(?P<rest>(?![0-9]*$).*)", re.DOTALL)
_TLS_SCHEMES = ("grpcs", "https")
_PORT = re.compile(r"[0-9]{1,5}")
_MAX_PORT = 65535
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
_LOCALHOST = "localhost"
_PRIVATE_NETWORKS = [
    ipaddress.ip_network(network)
    for network in (
        *("0.0.0.0/32", "127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"),
        *("::/127", "fc00::/7", "fe80::/10"),
    )
]
# In gRPC's order; it reads no others. The first one that is set counts, even if it is empty: no proxy then.
_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
_PROXY = re.compile("http://[^/?#]")  # gRPC ignores all others
_NO_PROXY_VARIABLES = ("no_grpc_proxy", "no_proxy")

_IP = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]


@dataclasses.dataclass(frozen=True)
class Address:
    """A valid address."""

    text: str  # as the caller wrote it
    target: str  # as gRPC takes it
    hosts: tuple[str, ...]  # names or IP addresses; none for a Unix socket

    @property
    def is_balanced(self) -> bool:
        """Whether there may be several servers, which then get the calls in turn: several addresses, or a name."""
        return len(self.hosts) > 1 or any(_ip(host) is None and host.lower() != _LOCALHOST for host in self.hosts)

    @property
    def is_name(self) -> bool:
        """Whether DNS, or a list of hosts, gives the IP addresses of the server or servers."""
        return len(self.hosts) == 1 and self.is_balanced

    @property
    def is_local(self) -> bool:
        """Whether every server is on this machine: a Unix socket, localhost or a loopback address."""
        return all(host.lower() == _LOCALHOST or _is_loopback(_ip(host)) for host in self.hosts)

    @property
    def connects_directly(self) -> bool:
        """Whether a proxy would be wrong: private addresses, names without a dot or in .local, several addresses."""
        return len(self.hosts) != 1 or _is_private(self.hosts[0])

    def proxy_variable(self, environment: Mapping[str, str]) -> str:
        """Return the name of the variable whose proxy gRPC connects to instead of the server; empty if none."""
        if self.connects_directly:
            return ""
        exempt = next((environment[name] for name in _NO_PROXY_VARIABLES if name in environment), "")
        if any(_is_in(self.hosts[0], entry.strip()) for entry in exempt.split(",") if entry.strip()):
            return ""
        name = next((name for name in _PROXY_VARIABLES if name in environment), "")
        return name if _PROXY.match(environment.get(name, "")) else ""


def parse_address(address: object) -> Address:
    """Return `address` as an Address.

    It is `host:port`, several IP addresses with ports separated by commas, `unix:/path`, or `dns:///host:port`.

    Raises:
        ValueError: `address` is anything else; the message names a form that works.
    """
    if not isinstance(address, str):
        raise ValueError(
            f"address must be a string such as {EXAMPLE}, or several IP addresses with ports separated by commas, got"
            f" {address!r:.200}"
        )
    if address.startswith(_UNIX_ABSTRACT):
        raise ValueError(
            f"address must name a Unix socket by its path, such as {_UNIX_EXAMPLE}; {_UNIX_ABSTRACT} is not supported,"
            f" got {address!r:.200}"
        )
    if address.startswith(_UNIX):
        return Address(address, _unix_target(address), ())
    _check_no_scheme(address)
    if "," in address:
        return _parse_several(address)
    host, port = _parse_host_and_port(address.removeprefix(_DNS), given=address)
    return Address(address, _DNS + urllib.parse.quote(_join(host, port), safe="[]:"), (host,))


def _parse_several(address: str) -> Address:
    """Return several addresses. gRPC takes IP addresses of one kind only, so IPv4 becomes IPv6 if they are mixed."""
    pairs = [_parse_host_and_port(part, given=address) for part in address.split(",")]
    ips: list[tuple[_IP, int]] = []
    for host, port in pairs:
        ip = ipaddress.ip_address("127.0.0.1") if host.lower() == _LOCALHOST else _ip(host)
        if ip is None:
            raise ValueError(
                f"several addresses must be IP addresses, such as 10.0.0.5:50051,10.0.0.6:50051, got the name"
                f" {host!r:.200} in {_shown(address)}; to use names, give all servers one DNS name, and pass it alone"
            )
        ips.append((ip, port))
    if all(ip.version == 4 for ip, _ in ips):
        target = "ipv4:" + ",".join(f"{ip}:{port}" for ip, port in ips)
    else:
        mapped = (f"[::ffff:{ip}]:{port}" if ip.version == 4 else f"[{ip}]:{port}" for ip, port in ips)
        target = "ipv6:" + ",".join(urllib.parse.quote(each, safe="[]:") for each in mapped)
    return Address(address, target, tuple(host for host, _ in pairs))


def _check_no_scheme(address: str) -> None:
    found = _URL.fullmatch(address) or _OTHER_SCHEME.fullmatch(address)
    if found is None or address.startswith(_DNS):
        return
    scheme, rest = found["scheme"], _without_user(found["rest"]).lstrip("/").split("/")[0][:200]
    if scheme == "dns":
        raise ValueError(
            f"address must have three slashes after dns:, such as dns:///{rest or EXAMPLE}, got {_shown(address)}"
        )
    with_tls = ", with tls=True" if scheme in _TLS_SCHEMES else ""
    raise ValueError(
        f"address must be host:port without a scheme, such as {rest or EXAMPLE}{with_tls}; {scheme}: is not supported,"
        f" got {_shown(address)}"
    )


def _without_user(text: str) -> str:
    """Return `text` without the user and the password of a URL, which no message may show."""
    return text.rpartition("@")[2]


def _shown(address: str) -> str:
    """Return `address` for a message: quoted, of limited length, without a password."""
    shown = f"...@{_without_user(address)}" if "@" in address else address
    return f"{shown!r:.200}"


def _parse_host_and_port(text: str, *, given: str) -> tuple[str, int]:
    """Return the host, without brackets, and the port in `text`, a part of the address `given`."""
    if re.search(r"\s", text):
        raise ValueError(f"address must not contain spaces, got {_shown(given)}")
    host, colon, port = text.rpartition(":")
    if text.startswith("[") and text.endswith("]"):
        host, colon, port = text, "", ""
    elif _ip(text) is not None and ":" in text:
        raise ValueError(f"an IPv6 address needs brackets and a port, such as [{text}]:50051, got {_shown(given)}")
    if not colon:  # gRPC would use port 443 and report a refused connection
        example = f"{text}:50051" if _is_host(text) else EXAMPLE
        raise ValueError(
            f"address must name a port, such as {example}, or a Unix socket, such as {_UNIX_EXAMPLE},"
            f" got {_shown(given)}"
        )
    if not host:
        raise ValueError(f"address must name a host before the colon, such as {EXAMPLE}, got {_shown(given)}")
    if ":" in host and not host.startswith("["):
        raise ValueError(
            f"address must be host:port with one colon, such as {EXAMPLE}; an IPv6 address needs brackets, such as"
            f" [::1]:50051, got {_shown(given)}"
        )
    if not _is_host(host):
        raise ValueError(
            f"address must name a host by an IP address, in brackets if it is IPv6, or by a name of ASCII letters,"
            f" digits, - and ., such as {EXAMPLE}, got {_shown(given)}"
        )
    if not _PORT.fullmatch(port) or not 1 <= int(port) <= _MAX_PORT:
        example = f"{host}:50051"
        raise ValueError(f"address must end with a port from 1 to {_MAX_PORT}, such as {example}, got {_shown(given)}")
    return host.strip("[]"), int(port)


def _is_host(text: str) -> bool:
    """Return whether `text` is a name, an IPv4 address, or an IPv6 address in brackets."""
    if text.startswith("[") and text.endswith("]"):
        ip = _ip(text[1:-1])
        return ip is not None and ip.version == 6
    if re.fullmatch(r"[0-9.]+", text):
        return _ip(text) is not None
    return len(text) <= 253 and _NAME.fullmatch(text) is not None


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _ip(text: str) -> _IP | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _unmapped(ip: _IP) -> _IP:
    """Return the IPv4 address inside an IPv6 one, or `ip` if there is none."""
    return (ip.version == 6 and ip.ipv4_mapped) or ip


def _is_loopback(ip: _IP | None) -> bool:
    return ip is not None and _unmapped(ip).is_loopback


def _is_private(host: str) -> bool:
    ip = _ip(host.partition("%")[0])
    if ip is not None:
        return any(_unmapped(ip) in network for network in _PRIVATE_NETWORKS)
    name = host.rstrip(".").lower()
    return "." not in name or name.endswith(".local")


def _is_in(host: str, entry: str) -> bool:
    """Return whether an entry of no_proxy covers `host`, as gRPC reads it: the end of a name, or a network."""
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return host.lower().endswith(entry.lower())


def _unix_target(address: str) -> str:
    """Return `address` as gRPC takes it, which reads a Unix socket as a URI: with `%`, `#` and `?` quoted."""
    if re.match("//[^/]", address[len(_UNIX) :]):  # gRPC would take the first folder as the name of a machine
        raise ValueError(
            f"address must have one slash after unix:, such as unix:{address[len(_UNIX) + 1 :]:.200}, got"
            f" {address!r:.200}"
        )
    try:
        path = os.fsencode(os.path.expanduser(address[len(_UNIX) :]))  # noqa: PTH111  Path would make `.` of nothing
    except UnicodeEncodeError:
        path = b""
    if not 0 < len(path) <= _MAX_SOCKET_PATH_BYTES or b"\0" in path:
        raise ValueError(
            f"address must name a Unix socket with a path of at most {_MAX_SOCKET_PATH_BYTES} bytes, such as"
            f" unix:/run/kilolayer.sock, got {address!r:.200}"
        )
    return _UNIX + urllib.parse.quote(path)
