"""AdminServer: the admin services on an address of their own, apart from the port that robots use.

It needs a running event loop and imports no JAX, so it runs in a server of one process, and in the supervisor of
several.
"""

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry

from serving.access.tls import Certificates
from serving.access.token_watch import TokenWatch
from serving.api.admin_actions import AdminActions
from serving.api.admin_service import AdminService
from serving.api.grpc_transport import GrpcTransport
from serving.api.open_inference.repository import RepositoryService
from serving.errors import StartupError, shortage
from serving.policies.deployment import Deployment
from serving.sockets import Address, TcpAddress
from serving.telemetry.descriptors import max_connections
from serving.telemetry.metrics import admin_actions

_MAX_REQUEST_BYTES = 64 << 10  # names and a version
_MAX_HELD_BYTES = 64 << 20
_MAX_STREAMS = 64  # most open calls of one connection
_MAX_CONNECTIONS = 64  # to a port
_SHARE = 4  # of the connections that the process may accept, one in so many may be to the port for operators
_REFUSED = "(refused)"  # the action of calls that are refused because of who calls; the outcome is the cause
_GRACE_S = 1.0  # for replies under way when the server stops


class AdminServer:
    """Answers the methods of PolicyAdmin, and the repository calls of the Open Inference Protocol, at one address.

    Args:
        deployment: carries out what operators ask for.
        address: to listen at. At a Unix socket no token is needed, because only its user can connect.
        tokens: of which one with the role admin is needed at a port.
        certificates: encrypt the connections to a port, which needs them.
        drain: begins to stop the whole server, and returns immediately.
        collectors: what the counter of actions is registered with.
        owns_folder: whether the folder of `address` is this program's own: it is made, for this user only. Otherwise it
            must exist.
        clock: monotonic seconds.

    Raises:
        StartupError: the address is a port, and there are no tokens.
    """

    def __init__(
        self,
        deployment: Deployment,
        address: Address,
        *,
        tokens: TokenWatch | None = None,
        certificates: Certificates | None = None,
        drain: Callable[[], None],
        collectors: CollectorRegistry,
        owns_folder: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = address
        self._owns_folder = owns_folder
        counter = admin_actions(collectors)
        self._actions = AdminActions(deployment, counter, clock=clock)
        guard = None
        if isinstance(address, TcpAddress):
            if tokens is None:
                raise StartupError(f"--admin {address} is a port, which needs tokens; add --tokens FILE")
            guard = tokens.guard(lambda cause: counter.labels(_REFUSED, cause), clock=clock)
        services = (AdminService(self._actions, drain=drain), RepositoryService(self._actions))
        self._transport = GrpcTransport(
            [each.service() for each in services],
            max_request_bytes=_MAX_REQUEST_BYTES,
            max_held_bytes=_MAX_HELD_BYTES,
            max_streams=_MAX_STREAMS,
            max_connections=admin_connections(address, max_connections()) or None,
            guard=guard,
            certificates=certificates,
            clock=clock,
        )

    async def start(self) -> None:
        """Listen at the address. Only this user and root can connect to a Unix socket.

        Raises:
            StartupError: the address cannot be bound, for example because another server listens there.
        """
        if isinstance(self._address, TcpAddress):
            self._address = await self._transport.start(self._address, flag="--admin")
            return
        try:
            if self._owns_folder:
                _make_folder(self._address.path.parent)
            self._address = await self._transport.start(self._address)
        except StartupError as error:
            raise StartupError(f"--admin: {error}; --admin off serves without this address") from error

    async def stop(self) -> None:
        """Close the socket and remove its file. Actions that have not ended are cancelled."""
        await self._transport.stop(_GRACE_S)
        await self._actions.close()

    def addresses(self) -> dict[str, str]:
        """Return the address by its name: `admin`."""
        return {"admin": str(self._address)}


def admin_connections(address: Address | None, most: int) -> int:
    """Return how many of the `most` connections of the process may be to `address`, if that is a port; otherwise 0.

    Anyone on the network may open connections to a port. At a Unix socket, only its user may.
    """
    return max(min(most // _SHARE, _MAX_CONNECTIONS), 1) if isinstance(address, TcpAddress) else 0


def _make_folder(folder: Path) -> None:
    """Make a folder that only this user can use, or check that it is one.

    Raises:
        StartupError: it cannot be made, or it is another user's.
    """
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        about = folder.lstat()
    except OSError as error:
        problem = shortage(error) or str(error.strerror)
        raise StartupError(f"cannot make the folder {folder} for the admin socket: {problem}") from error
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o077:
        raise StartupError(f"{folder} must be a folder that only this user can use (mode 0700), and it is not")
