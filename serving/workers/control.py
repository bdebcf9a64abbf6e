"""The control of a running server: it follows the folders of policies, and answers operators at the admin address."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator, Callable

from prometheus_client import CollectorRegistry

from serving.access.tls import Certificates
from serving.access.token_watch import TokenWatch
from serving.api.admin_server import AdminServer
from serving.config import ServeConfig
from serving.policies.deployment import Deployment
from serving.policies.trial_metrics import TrialsCollector
from serving.sockets import Address, TcpAddress
from serving.telemetry.logs import log_failure
from serving.workers.reload import Reload
from serving.workers.shutdown import on_hangup


@contextlib.asynccontextmanager
async def controlled(
    deployment: Deployment,
    config: ServeConfig,
    *,
    address: Address,
    drain: Callable[[], None],
    collectors: CollectorRegistry,
    reload: Reload,
    tokens: TokenWatch | None = None,
) -> AsyncGenerator[dict[str, str]]:
    """Follow the folders and answer operators until the end of the context. Yield the admin address by its name.

    Args:
        address: at which the server listens.
        drain: begins to stop the server, and returns immediately.
        collectors: what the metrics of operators' actions and of canaries are registered with.
        reload: what happens at SIGHUP.
        tokens: the accepted ones, which their owner watches; None: they are read here if operators need one.

    Raises:
        StartupError: the admin address cannot be bound, or the tokens cannot be read.
    """
    admin: AdminServer | None = None
    tasks: set[asyncio.Task[None]] = set()
    if admin_address := config.admin_address(address):
        if tokens is None and config.tokens and isinstance(admin_address, TcpAddress):
            tokens = TokenWatch(config.tokens)
            watching = asyncio.create_task(tokens.run())
            watching.add_done_callback(
                functools.partial(log_failure, problem="changes of --tokens are no longer taken; restart the server")
            )
            tasks.add(watching)
        admin = AdminServer(
            deployment,
            admin_address,
            tokens=tokens,
            certificates=config.tls and Certificates(config.tls),
            drain=drain,
            collectors=collectors,
            owns_folder=config.owns_admin_folder,
        )
        await admin.start()
    collectors.register(TrialsCollector(deployment))

    def begin_reload() -> None:
        reloading = asyncio.create_task(reload(deployment))
        tasks.add(reloading)
        reloading.add_done_callback(tasks.discard)
        reloading.add_done_callback(functools.partial(log_failure, problem="the settings stay as they are"))

    on_hangup(begin_reload)
    following = asyncio.create_task(deployment.run())
    following.add_done_callback(
        functools.partial(log_failure, problem="no new version is taken up any more; restart the server")
    )
    try:
        yield admin.addresses() if admin else {}
    finally:
        for task in (following, *tasks):
            task.cancel()
        if admin:
            await admin.stop()
