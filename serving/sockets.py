"""Addresses: how they are written, how a port is reserved for several processes, and the error if that fails.

Also the limit of file descriptors, of which every connection needs one.
"""

import resource
import socket
from collections.abc import Generator
from contextlib import contextmanager

from serving.errors import StartupError


def raise_descriptor_limit() -> None:
    """Raise the soft limit of file descriptors of this process, and of those that it starts, to the hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def join_address(host: str, port: int) -> str:
    """Return `host:port`, with brackets around an IPv6 host."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bind_error(flag: str, host: str, *, port: int) -> StartupError:
    """Return the error for a port, given by `flag`, that cannot be bound."""
    return StartupError(
        f"cannot bind {flag} {port} on {host}: address in use or not permitted; choose another port with {flag}, or 0"
        " for any free one, and check --host"
    )


@contextmanager
def hold_port(host: str, port: int) -> Generator[int]:
    """Reserve `port` (0: any free one) so that only processes of this server can listen on it; yield its number.

    Raises:
        StartupError: the port cannot be bound.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that just ended do not matter
            probe.bind(address)  # fails if another process listens, even if that process would share the port
            address = probe.getsockname()
        held = socket.socket(family)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(address)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # otherwise another process that sets it could bind
    except (OSError, UnicodeError) as error:  # UnicodeError: the host is not a valid name
        raise bind_error("--port", host, port=port) from error
    with held:
        yield address[1]
