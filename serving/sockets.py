"""Addresses: how they are written, how a port is reserved for several processes, and the error if that fails.

Also the limit of file descriptors, of which every connection needs one.
"""

import errno
import resource
import socket
from collections.abc import Generator
from contextlib import contextmanager

from serving.errors import StartupError, shortage

_PROBLEMS = {
    errno.EADDRINUSE: "address in use",
    errno.EACCES: "not permitted; ports below 1024 usually need root",
}


def raise_descriptor_limit() -> None:
    """Raise the soft limit of file descriptors of this process, and of those that it starts, to the hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def join_address(host: str, port: int) -> str:
    """Return `host:port`, with brackets around an IPv6 host."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bind_error(flag: str, host: str, *, port: int) -> StartupError:
    """Return the error for a port, given by `flag`, that cannot be bound. Binds it once more to learn the cause.

    gRPC does not tell the cause, so it is read from an attempt of our own.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
        problem = "it was not free a moment ago"
    except (socket.gaierror, UnicodeError) as error:  # UnicodeError: no host can have this name
        reason = error.strerror if isinstance(error, OSError) else "not a valid name"
        return StartupError(
            f"--host {host} does not resolve to an address ({reason}); use 127.0.0.1 for this machine only, 0.0.0.0 for"
            " every network"
        )
    except OSError as error:
        if lacking := shortage(error):
            return StartupError(f"cannot bind {flag} {port} on {host}: {lacking}")
        if error.errno == errno.EADDRNOTAVAIL:
            return StartupError(
                f"--host {host} is not an address of this machine; use 127.0.0.1 for this machine only, 0.0.0.0 for"
                " every network"
            )
        problem = _PROBLEMS.get(error.errno or 0, str(error.strerror))
    return StartupError(
        f"cannot bind {flag} {port} on {host}: {problem}; choose another port with {flag}, or 0 for any free one"
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
