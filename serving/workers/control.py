"""The control of a running server: it follows the folders of policies, and answers operators at the admin address."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable

from prometheus_client import CollectorRegistry

from serving.api.admin_server import AdminServer
from serving.config import ServeConfig
from serving.policies.deployment import Deployment
from serving.sockets import Address
from serving.workers.shutdown import on_hangup


@contextlib.asynccontextmanager
async def controlled(
    deployment: Deployment,
    config: ServeConfig,
    *,
    address: Address,
    drain: Callable[[], None],
    collectors: CollectorRegistry,
) -> AsyncGenerator[dict[str, str]]:
    """Follow the folders and answer operators until the end of the context. Yield the admin address by its name.

    Args:
        address: at which the server listens.
        drain: begins to stop the server, and returns immediately.
        collectors: what the counter of operators' actions is registered with.

    Raises:
        StartupError: the admin socket cannot be bound.
    """
    admin: AdminServer | None = None
    if admin_address := config.admin_address(address):
        admin = AdminServer(
            deployment, admin_address, drain=drain, collectors=collectors, owns_folder=config.owns_admin_folder
        )
        await admin.start()
    on_hangup(deployment.look_now)
    following = asyncio.create_task(deployment.run())
    try:
        yield admin.addresses() if admin else {}
    finally:
        following.cancel()
        if admin:
            await admin.stop()
