"""Addresses: how they are written, how they are reserved for this server, and the error if that fails.

Also the limit of file descriptors, of which every connection needs one.
"""

import contextlib
import dataclasses
import errno
import fcntl
import os
import resource
import socket
import stat
import time
import urllib.parse
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from serving.errors import StartupError, shortage

_FORMS = "use HOST:PORT, such as 127.0.0.1:50051, [::1]:50051 or 0.0.0.0:50051, or unix:PATH"

MAX_PORT = 65535
BACKLOG = 4096  # connections that wait to be accepted, if the system allows as many
_UNIX = "unix:"
_MAX_PATH_BYTES = 107  # of a Unix socket: the kernel's limit
_OWNER_ONLY = 0o177  # the umask that leaves a socket the mode 0600
_LOCK_S = 5.0  # for another server to bind in the same folder
_POLL_S = 0.01
_PROBLEMS = {
    errno.EADDRINUSE: "address in use",
    errno.EACCES: "not permitted; ports below 1024 usually need root",
}


class AddressError(ValueError):
    """A text that is no address. The message says what is wrong, and what is allowed."""


@dataclasses.dataclass(frozen=True)
class TcpAddress:
    """A host and a port; 0 stands for any free port. As a string: `host:port`, with brackets around an IPv6 host."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclasses.dataclass(frozen=True)
class UnixAddress:
    """The absolute path of a Unix socket. As a string: `unix:PATH`."""

    path: Path

    def __str__(self) -> str:
        return f"{_UNIX}{self.path}"

    @property
    def uri(self) -> str:
        """The address as gRPC takes it, with `%`, `#` and `?` quoted."""
        return _UNIX + urllib.parse.quote(os.fsencode(self.path))


Address: TypeAlias = TcpAddress | UnixAddress


def parse_address(text: str) -> Address:
    """Return the address that `text` means.

    Raises:
        AddressError: it means none.
    """
    if text.startswith(_UNIX):
        return _parse_unix(text.removeprefix(_UNIX))
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise AddressError(f"needs brackets around an IPv6 host, such as [::1]:50051, got {text!r}")
    if not (colon and port.isascii() and port.isdigit()):
        raise AddressError(f"must end with a port, got {text!r}; {_FORMS}")
    if not host:
        raise AddressError(
            f"must name a host, got {text!r}; use 127.0.0.1 for this machine only, 0.0.0.0 for every network"
        )
    if int(port) > MAX_PORT:
        raise AddressError(f"must have a port from 0 to {MAX_PORT}, got {port}; 0 picks a free port")
    return TcpAddress(host, int(port))


def _parse_unix(path: str) -> UnixAddress:
    if not path:
        raise AddressError("must name a path after unix:, such as unix:/run/kilolayer/act.sock")
    try:
        address = UnixAddress(Path(path).expanduser().absolute())
    except RuntimeError as error:
        raise AddressError(
            f"must name a path in a home folder that exists, got {path!r}; use an absolute path"
        ) from error
    if (size := len(os.fsencode(address.path))) > _MAX_PATH_BYTES:
        raise AddressError(f"must name a path of at most {_MAX_PATH_BYTES} bytes, got {size}: {address.path}")
    return address


def raise_descriptor_limit() -> None:
    """Raise the soft limit of file descriptors of this process, and of those that it starts, to the hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def bind_error(flag: str, address: TcpAddress) -> StartupError:
    """Return the error for an address, given by `flag`, that cannot be bound. Binds it once more to learn the cause.

    gRPC gives no cause, so the cause is read from an attempt of our own.
    """
    host, port = address.host, address.port
    of_metrics = flag == "--metrics-port"
    what = f"{flag} {port} on {host}" if of_metrics else f"{flag} {address}"
    host_flag = "--metrics-host" if of_metrics else flag
    try:
        family, _, _, _, numeric = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(numeric)
            probe.listen()
        problem = "it was not free a moment ago"
    except (socket.gaierror, UnicodeError) as error:  # UnicodeError: no host can have this name
        reason = error.strerror if isinstance(error, OSError) else "not a valid name"
        return StartupError(
            f"the host {host} of {host_flag} does not resolve to an address ({reason}); use 127.0.0.1 for this machine"
            " only, 0.0.0.0 for every network"
        )
    except OSError as error:
        if lacking := shortage(error):
            return StartupError(f"cannot bind {what}: {lacking}")
        if error.errno == errno.EADDRNOTAVAIL:
            return StartupError(
                f"the host {host} of {host_flag} is not an address of this machine; use 127.0.0.1 for this machine"
                " only, 0.0.0.0 for every network"
            )
        problem = _PROBLEMS.get(error.errno or 0, str(error.strerror))
    return StartupError(f"cannot bind {what}: {problem}; choose another port with {flag}, or 0 for any free one")


def listening_socket(flag: str, address: TcpAddress, *, share_port: bool) -> tuple[TcpAddress, socket.socket]:
    """Listen at `address`, given by `flag`; return it with the number of its port, and the socket.

    Args:
        share_port: whether other processes may listen on the port too.

    Raises:
        StartupError: the address cannot be bound.
    """
    listening = None
    try:
        family, _, _, _, numeric = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(share_port))
        listening.bind(numeric)
        listening.listen(BACKLOG)
    except (OSError, UnicodeError) as error:  # UnicodeError: the host is not a valid name
        if listening:
            listening.close()
        raise bind_error(flag, address) from error
    return dataclasses.replace(address, port=listening.getsockname()[1]), listening


@contextmanager
def hold_port(address: TcpAddress, *, flag: str = "--listen") -> Generator[TcpAddress]:
    """Reserve the port of `address` so that only processes of this server can listen on it; yield it, with its number.

    `flag` gives the port.

    Raises:
        StartupError: the port cannot be bound.
    """
    try:
        family, _, _, _, numeric = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that just ended do not matter
            probe.bind(numeric)  # fails if another process listens, even if that process would share the port
            numeric = probe.getsockname()
        held = socket.socket(family)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(numeric)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # otherwise another process that sets it could bind
    except (OSError, UnicodeError) as error:  # UnicodeError: the host is not a valid name
        raise bind_error(flag, address) from error
    with held:
        yield dataclasses.replace(address, port=numeric[1])


@contextmanager
def may_bind(address: UnixAddress) -> Generator[None]:
    """Let the context bind a socket to the path of `address`, with the mode 0600.

    gRPC replaces any socket at the path, so one at which a program listens must be found before. A lock on the folder
    keeps another server from binding between the two. The context must bind and listen before it ends.

    Raises:
        StartupError: the path is taken, or no socket can be made there.
    """
    path = address.path
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_locked(path.parent))
            _require_free(path)
            path.unlink(missing_ok=True)  # of a server that was killed
            with socket.socket(socket.AF_UNIX) as probe:  # finds out why it fails: gRPC gives no reason
                probe.bind(str(path))
            path.unlink()
        except OSError as error:
            problem = shortage(error) or f"{error.strerror}; choose a path in a folder that exists and can be written"
            raise StartupError(f"cannot listen on {address}: {problem}") from error
        stack.callback(os.umask, os.umask(_OWNER_ONLY))
        yield


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    """Hold the lock on `folder`. StartupError if another process holds it for too long."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    ends_s = time.monotonic() + _LOCK_S
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > ends_s:
                    raise StartupError(
                        f"another process has locked the folder {folder} for {_LOCK_S:g} s; choose a path in another"
                        " folder"
                    ) from error
                time.sleep(_POLL_S)
        yield
    finally:
        os.close(descriptor)


def _require_free(path: Path) -> None:
    """Raise StartupError if `path` is no socket, or a socket at which a program listens. OSError if that is unknown."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise StartupError(f"cannot listen on {_UNIX}{path}: it exists and is not a socket; choose another path")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        problem = probe.connect_ex(str(path))
    if problem in (0, errno.EAGAIN):  # EAGAIN: its queue of connections is full
        raise StartupError(
            f"cannot listen on {_UNIX}{path}: another program listens there; stop it, or choose another path"
        )
    if problem not in (errno.ECONNREFUSED, errno.ENOENT):
        raise OSError(problem, os.strerror(problem))
