"""The life of one server process: alone, or as one of several workers on one port.

Alone, it opens its ports with health NOT_SERVING, compiles, and serves until SIGTERM or SIGINT. A worker, started by
`serving.workers.supervisor`, loads and compiles first and opens the shared port when the supervisor sends `Open`. All
workers open it together, so every connection to the port reaches a worker that is ready. A worker also stops when its
supervisor has ended. A process that cannot compute any more ends with exit code 1, so that another one replaces it.
"""

import asyncio
import contextlib
import functools
import logging
import os
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from threading import Thread
from typing import Any, BinaryIO

import jax
import uvloop
from prometheus_client import CollectorRegistry

from policy import compilation_cache, jax_settings
from serving.access import handshakes
from serving.config import ServeConfig
from serving.engine.thread_priority import run_in_thread, start_at_lower_priority
from serving.errors import BrokenError, RefusedVersionError, StartupError, shortage
from serving.loading import load, process_collectors
from serving.policies.deployment import Deployment, VersionHost
from serving.policies.episode_reports import EpisodeReports
from serving.policies.host import PolicyHost
from serving.policies.report_metrics import ReportsCollector
from serving.policies.restart import RestartPlan, plan_restart
from serving.policies.source import PolicySource, resolve
from serving.server import Server
from serving.telemetry.heartbeat import BEAT_S
from serving.telemetry.logs import log_to_stderr, ready_line
from serving.workers.control import controlled
from serving.workers.line_pipe import LinePipe
from serving.workers.messages import (
    Alive,
    Change,
    Changed,
    Compiled,
    Counted,
    Loaded,
    Message,
    Open,
    Serving,
    Start,
    from_line,
    to_line,
)
from serving.workers.reload import Reload
from serving.workers.reports import ForwardedReports
from serving.workers.shutdown import exit_code, finished_before, stop_event

_LOGGER = logging.getLogger(__name__)
_PIPE_FULL_S = 0.05  # until a message is sent again
_SUPERVISOR_GONE = "the supervisor process is gone; stopping"


def run_alone(config: ServeConfig, read: Callable[[], ServeConfig]) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit code. `read` reads the settings again at SIGHUP."""
    if config.tls:
        handshakes.watch()
        log_to_stderr(config.log_format)  # to where stderr was before
    return _run(_serve_alone(config, read))


def run_worker(from_supervisor: BinaryIO, to_supervisor: BinaryIO) -> int:
    """Serve until SIGTERM or until the supervisor ends, and return the exit code. Both pipes carry `messages`."""
    line = from_supervisor.readline()
    if not line.endswith(b"\n"):
        log_to_stderr("auto", worker=os.getpid())
        _LOGGER.warning(_SUPERVISOR_GONE)
        return 0
    start = from_line(line)
    assert isinstance(start, Start)
    if start.config.tls:
        handshakes.watch()
    log_to_stderr(start.config.log_format, worker=os.getpid())
    if start.cores:
        os.sched_setaffinity(0, start.cores)  # before JAX counts them
    return _run(_serve_shared(start, from_supervisor, LinePipe(to_supervisor)))


def _run(serving: Coroutine[Any, Any, None]) -> int:
    if warning := jax_settings.apply():
        _LOGGER.warning("%s", warning)
    # The executor's threads wait for every result anyway, so a second thread of JAX would only cost time.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    # A restart compiles the same programs again, so each is kept, however short its compilation is.
    if warning := compilation_cache.enable(worth_saving_s=0.0):
        _LOGGER.warning("%s", warning)
    try:
        problems: list[str] = []
        start_at_lower_priority(lambda: problems.append(jax_settings.device_problem()))
        if any(problems):
            serving.close()
            raise StartupError(problems[0])
        uvloop.run(serving)
    except (StartupError, BrokenError, _UnansweredError) as error:
        _LOGGER.error("%s", error)
    except Exception as error:
        if lacking := shortage(error):
            _LOGGER.error("the server cannot go on: %s", lacking)
        else:
            _LOGGER.exception("the server fails: %s", error)
    else:
        _LOGGER.info("stopped; every accepted call was answered")
        return exit_code(0)
    logging.shutdown()
    # A computation that never returns would prevent its thread and the process from ending.
    os._exit(1)


class _UnansweredError(Exception):
    """The server stopped before every accepted call was answered."""


async def _serve_alone(config: ServeConfig, read: Callable[[], ServeConfig]) -> None:
    stop = stop_event()
    collectors, reports = process_collectors(), EpisodeReports()
    collectors.register(ReportsCollector(reports))
    loading = asyncio.ensure_future(_load_alone(config, collectors, reports))
    if not await finished_before(stop, loading):
        return
    server, sources, plan = loading.result()
    await server.start()
    async with _draining(server, config):
        _LOGGER.info("ports are open; health is NOT_SERVING until every policy is compiled")
        if await finished_before(stop, server.prepare()):
            server.open()
            deployment = Deployment(
                sources, server.host, plan, live=server.versions(), keep=config.keep, reports=reports
            )
            control = controlled(
                deployment,
                config,
                address=server.address,
                drain=stop.set,
                collectors=collectors,
                reload=Reload(config, sources, read),
                tokens=server.tokens,
            )
            async with control as admin:
                addresses = server.addresses() | admin
                _LOGGER.info("%s", ready_line(addresses, policies=server.policies_line()), extra=addresses)
                await finished_before(stop, server.serve())
        _LOGGER.info("stopping: refusing new calls, answering accepted ones")


async def _load_alone(
    config: ServeConfig, collectors: CollectorRegistry, reports: EpisodeReports
) -> tuple[Server, Sequence[PolicySource], RestartPlan]:
    sources = await run_in_thread(resolve, config)
    plan = await run_in_thread(plan_restart, config, sources)
    server = await load(config, sources=sources, choices=plan.choices, collectors=collectors, reports=reports)
    return server, sources, plan


async def _serve_shared(start: Start, from_supervisor: BinaryIO, to_supervisor: LinePipe) -> None:
    stop, received = stop_event(), asyncio.Queue[Open | Change]()
    loop = asyncio.get_running_loop()
    reports = ForwardedReports(lambda message: send(to_supervisor, message, stop))
    Thread(target=listen, args=(from_supervisor, loop, received, reports.counted, stop), daemon=True).start()
    if (platform := jax.default_backend()) != "cpu":
        raise StartupError(f"--workers needs a CPU; a {platform} device is served by one process: leave out --workers")
    rejected: list[str] = []
    loading = asyncio.ensure_future(
        load(
            start.config,
            sources=start.sources,
            choices=start.choices,
            collectors=CollectorRegistry(),
            reports=reports,
            on_rejected=rejected.append,
        )
    )
    if not await finished_before(stop, loading):
        return
    server = loading.result()
    send(to_supervisor, Loaded(dict(server.versions()), tuple(rejected)), stop)
    if not await finished_before(stop, server.prepare()):
        return
    server.open()  # before the port: until then no call arrives
    may_open = asyncio.Event()
    changing = asyncio.create_task(_change(server.host, received, may_open, to_supervisor, stop))
    send(to_supervisor, Compiled(), stop)
    if not await finished_before(stop, may_open.wait()):
        return
    await server.start()
    async with _draining(server, start.config):
        send(to_supervisor, Serving(), stop)
        # A supervisor that is stopped reads nothing. Without this, the event loop would wait when the pipe is full.
        os.set_blocking(to_supervisor.fileno(), False)
        beating = asyncio.create_task(beat(to_supervisor, stop))
        await finished_before(stop, server.serve())
        beating.cancel()
        changing.cancel()


async def _change(
    host: PolicyHost,
    received: "asyncio.Queue[Open | Change]",
    may_open: asyncio.Event,
    to_supervisor: LinePipe,
    stop: asyncio.Event,
) -> None:
    """Do what the supervisor sends. A switch does not wait until another version is loaded. Does not return."""

    async def carry_out(change: Change) -> None:
        await send_surely(to_supervisor, await changed(host, change), stop)

    async with asyncio.TaskGroup() as changes:
        while True:
            message = await received.get()
            if isinstance(message, Change):
                changes.create_task(carry_out(message))
            else:
                may_open.set()


async def changed(host: VersionHost, change: Change) -> Changed:
    """Carry out a change, and return the answer."""
    act: Callable[[str, int], Coroutine[Any, Any, None]] = {
        "prepare": host.prepare,
        "switch": host.switch,
        "unload": host.unload,
        "set_canary": functools.partial(host.set_canary, share=change.share),
        "set_shadow": functools.partial(host.set_shadow, share=change.share),
    }[change.what]
    try:
        await act(change.policy, change.version)
    except RefusedVersionError as error:
        return Changed(change.number, refused=error.reason, problem=str(error), detail=error.detail)
    except StartupError as error:
        return Changed(change.number, problem=str(error))
    except Exception:
        _LOGGER.exception("%s of version %d of %s fails", change.what, change.version, change.policy)
        return Changed(change.number, problem="the worker failed; its log says why")
    return Changed(change.number)


@contextlib.asynccontextmanager
async def _draining(server: Server, config: ServeConfig) -> AsyncGenerator[None]:
    """Drain `server` at the end of the context.

    Raises:
        _UnansweredError: the context ended normally, and not every accepted call was answered.
    """
    answered = False
    try:
        yield
    finally:
        answered = await server.drain()
    if not answered:
        raise _UnansweredError(
            f"stopped after {config.grace_s:g} s of grace with calls unanswered; allow more time with --grace-s"
        )


def send(to_supervisor: LinePipe, message: Message, stop: asyncio.Event) -> bool:
    """Send a message to the supervisor; set `stop` if the supervisor has ended. Return False if its pipe is full."""
    try:
        return to_supervisor.write(to_line(message))
    except OSError:  # `listen` notices it too
        stop.set()
        return True


async def send_surely(to_supervisor: LinePipe, message: Message, stop: asyncio.Event) -> None:
    """Send a message that the supervisor waits for. While its pipe is full, try again."""
    while not send(to_supervisor, message, stop):  # noqa: ASYNC110  a pipe sets no event
        await asyncio.sleep(_PIPE_FULL_S)


async def beat(to_supervisor: LinePipe, stop: asyncio.Event) -> None:
    """Tell the supervisor every second that the event loop runs. Does not return."""
    while True:
        send(to_supervisor, Alive(), stop)
        await asyncio.sleep(BEAT_S)


def listen(
    from_supervisor: BinaryIO,
    loop: asyncio.AbstractEventLoop,
    received: "asyncio.Queue[Open | Change]",
    counted: Callable[[Counted], None],
    stop: asyncio.Event,
) -> None:
    """Put what the supervisor sends into `received`; set `stop` when it has ended. Runs in its own thread.

    Args:
        from_supervisor: its lines.
        loop: on which the others are used.
        received: for what changes this worker.
        counted: called with the answers to reports.
        stop: stops this worker.
    """
    with contextlib.suppress(RuntimeError):  # the loop has ended, and this process ends too
        while (line := from_supervisor.readline()).endswith(b"\n"):  # a supervisor may end within a line
            message = from_line(line)
            if isinstance(message, Counted):
                loop.call_soon_threadsafe(counted, message)
            else:
                assert isinstance(message, Open | Change)
                loop.call_soon_threadsafe(received.put_nowait, message)
        _LOGGER.warning(_SUPERVISOR_GONE)
        loop.call_soon_threadsafe(stop.set)
