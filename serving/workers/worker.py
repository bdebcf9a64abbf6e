"""The life of one server process, alone or as one of several workers on one port.

Alone, it opens its ports, with health NOT_SERVING, compiles, and serves until SIGTERM or SIGINT. A worker, started by
`serving.workers.supervisor`, loads and compiles first and opens the shared port when told: all workers open together,
so whoever reaches the port is answered, whichever worker that is. It also stops when its parent is gone.
"""

import asyncio
import logging
import os
import sys
from collections.abc import Coroutine, Sequence
from multiprocessing.connection import Connection
from threading import Thread
from typing import Any

import jax
import uvloop
from prometheus_client import CollectorRegistry

from serving.config import ServeConfig
from serving.engine.thread_priority import start_at_lower_priority
from serving.errors import StartupError
from serving.server import load
from serving.telemetry.logs import log_to_stderr
from serving.workers.messages import Compiled, FromWorker, Loaded, Open, Serving
from serving.workers.shutdown import stop_event, unless

_LOGGER = logging.getLogger(__name__)


def run_alone(config: ServeConfig) -> int:
    """Serve until told to stop, and return the exit code."""
    return _run(_serve_alone(config), config)


def run_worker(
    config: ServeConfig, parent: Connection, *, versions: Sequence[int] | None, cores: Sequence[int]
) -> None:
    """Serve until told to stop, and exit.

    Args:
        parent: the pipe to it.
        versions: of the policies, in the order of their folders; None: the newest that verify.
        cores: that this process keeps to; empty: any.
    """
    log_to_stderr(config.log_format, worker=os.getpid())
    if cores:
        os.sched_setaffinity(0, cores)  # before JAX counts them
    sys.exit(_run(_serve_shared(config, parent, versions=versions), config))


def _run(serving: Coroutine[Any, Any, bool], config: ServeConfig) -> int:
    # The batcher's thread waits for every result anyway; handing it over to a thread of JAX's only costs time.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    start_at_lower_priority(jax.devices)
    try:
        answered = uvloop.run(serving)
    except StartupError as error:
        _LOGGER.error("%s", error)
        return 1
    if answered:
        _LOGGER.info("stopped; every accepted call was answered")
        return 0
    _LOGGER.error("stopped after %g s of grace with calls unanswered; allow more with --grace-s", config.grace_s)
    logging.shutdown()
    # A computation that never returns also keeps its thread, and so the process, from ending.
    os._exit(1)


async def _serve_alone(config: ServeConfig) -> bool:
    stop = stop_event()
    server = await load(config)
    await server.start()
    try:
        _LOGGER.info("ports are open; health says NOT_SERVING until everything is compiled")
        if await unless(stop, server.prepare()):
            server.open()
            _LOGGER.info("%s", server.ready_line(), extra=server.addresses())
            await stop.wait()
        _LOGGER.info("stopping: new calls are refused, accepted ones answered")
    finally:
        answered = await server.drain()
    return answered


async def _serve_shared(config: ServeConfig, parent: Connection, *, versions: Sequence[int] | None) -> bool:
    stop, may_open = stop_event(), asyncio.Event()
    Thread(target=listen, args=(parent, asyncio.get_running_loop(), may_open, stop), daemon=True).start()
    if (platform := jax.default_backend()) != "cpu":
        raise StartupError(
            f"workers share CPUs; a device of kind {platform} is served by one process: leave out --workers"
        )
    server = await load(config, versions=versions, collectors=CollectorRegistry())
    tell(parent, Loaded(server.versions()), stop)
    if not await unless(stop, server.prepare()):
        return True
    tell(parent, Compiled(), stop)
    if not await unless(stop, may_open.wait()):
        return True
    await server.start()
    try:
        server.open()
        tell(parent, Serving(server.policies_line()), stop)
        await stop.wait()
    finally:
        answered = await server.drain()
    return answered


def tell(parent: Connection, said: FromWorker, stop: asyncio.Event) -> None:
    """Say something to the parent; if it is gone, set `stop`."""
    try:
        parent.send(said)
    except OSError:  # as `listen` hears too
        stop.set()


def listen(parent: Connection, loop: asyncio.AbstractEventLoop, may_open: asyncio.Event, stop: asyncio.Event) -> None:
    """Take what the parent says to the event loop, until the parent is gone, which sets `stop`."""
    try:
        while True:
            assert isinstance(parent.recv(), Open)
            loop.call_soon_threadsafe(may_open.set)
    except (EOFError, OSError):  # the latter: it left with something of ours unread
        _LOGGER.warning("the parent process is gone; stopping")
        loop.call_soon_threadsafe(stop.set)
