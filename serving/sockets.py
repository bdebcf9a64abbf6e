"""Addresses: how they are written, who holds them, and what is said when one cannot be had."""

import socket
from collections.abc import Generator
from contextlib import contextmanager

from serving.errors import StartupError


def join_address(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 host."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bind_error(field: str, host: str, *, port: int) -> StartupError:
    """The error for a port, `field` of the configuration, that cannot be bound."""
    flag = "--" + field.replace("_", "-")
    return StartupError(
        f"{field} {port} on {host} cannot be had, another program may hold it; choose another with {flag}, or 0 for"
        " any free one, and check --host"
    )


@contextmanager
def hold_port(host: str, port: int) -> Generator[int]:
    """Hold `port` (0: any free one) so that only processes of ours can listen on it; gives its number.

    Raises:
        StartupError: it cannot be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that ended lately do not count
            probe.bind(address)  # fails though the port's holder may be willing to share it
            address = probe.getsockname()
        held = socket.socket(family)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(address)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # from now on others may not, who would set it too
    except (OSError, UnicodeError) as error:  # the latter: a host that is no name
        raise bind_error("port", host, port=port) from error
    with held:
        yield address[1]
