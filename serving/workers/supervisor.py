"""Supervisor: starts several workers on one port, serves their metrics, replaces one that dies, and stops them.

All worker processes are started at the same time, so that they import their libraries together. A worker that is killed
before it serves is started again, a few times. If one exits by itself, it has logged why, and the server ends.

Several processes can listen on one port that each binds with SO_REUSEPORT; the kernel distributes new connections among
them. The supervisor holds the port, bound and not listening, so that no other program takes it while no worker listens.
Each worker answers health checks itself. The answers agree, because the workers open the port together once all have
compiled, and a replacement opens it when it is ready. The supervisor answers HTTP probes for all workers. Each worker
writes its metrics into files (Prometheus's multiprocess mode), and the supervisor serves the sums. The first worker
reports which versions it found; the others serve exactly those, and a replacement the versions that are live by then.
The supervisor decides about versions for all workers (`serving.policies.deployment`).
"""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.multiprocess import mark_process_dead

from serving.access import handshakes
from serving.config import ServeConfig
from serving.errors import RefusedVersionError, StartupError, shortage
from serving.policies.deployment import Deployment
from serving.policies.episode_reports import EpisodeReports
from serving.policies.report_metrics import ReportsCollector
from serving.policies.restart import RestartPlan, plan_restart
from serving.policies.source import PolicySource, resolve
from serving.telemetry.descriptors import ConnectionsCollector
from serving.telemetry.heartbeat import BEAT_S, Heartbeat
from serving.telemetry.logs import log_to_stderr, ready_line
from serving.telemetry.metrics import ProcessesCollector, rejected_bundles
from serving.telemetry.metrics_server import MetricsServer
from serving.workers.all_workers import LOAD_S, AllWorkers
from serving.workers.control import controlled
from serving.workers.held_ports import held_ports
from serving.workers.metrics_folder import (
    WorkersCollector,
    metrics_folder,
    remove_metrics,
    write_workers_metrics_to,
)
from serving.workers.reload import Reload
from serving.workers.reports import ReceivedReports
from serving.workers.shutdown import exit_code, finished_before, stop_event
from serving.workers.worker_process import WorkerEndedError, WorkerProcess

_LOGGER = logging.getLogger(__name__)

_MAX_STARTS = 5  # of one worker, until it serves for the first time
_RETRY_S = 5.0  # until a worker that could not be started, or that ended before it served, is tried again
_MAX_DEATHS, _WITHIN_S = 5, 60.0  # after this many deaths in this time, the supervisor gives up
_OPEN_S = 60.0  # at most, to open the port; this takes milliseconds
_EXIT_S = 5.0  # time for a worker to exit by itself after the grace period


def supervise(config: ServeConfig, read: Callable[[], ServeConfig]) -> int:
    """Serve with `config.workers` workers until SIGTERM or SIGINT, and return the exit code.

    `read` reads the settings again at SIGHUP.
    """
    if config.tls:  # the admin address may be a port
        handshakes.watch()
        log_to_stderr(config.log_format)  # to where stderr was before
    try:
        with ThreadPoolExecutor(1) as executor:  # so that this thread handles signals while a bucket does not answer
            sources = executor.submit(resolve, config).result()
            plan = executor.submit(plan_restart, config, sources).result()
        with metrics_folder() as folder, held_ports(config) as of_workers:
            write_workers_metrics_to(folder)
            supervisor = Supervisor(of_workers, sources, plan, reload=Reload(config, sources, read))
            code = asyncio.run(supervisor.run())
        return exit_code(code)
    except StartupError as error:
        _LOGGER.error("%s", error)
    except Exception as error:
        if lacking := shortage(error):
            _LOGGER.error("the supervisor cannot go on: %s", lacking)
        else:
            _LOGGER.exception("the supervisor fails: %s", error)
    return 1


class Supervisor:
    """The workers of one port. Use `run`, once.

    Args:
        config: what each of them serves; its port is held.
        sources: the policies.
        plan: the versions to try.
        reload: what happens at SIGHUP.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        config: ServeConfig,
        sources: Sequence[PolicySource],
        plan: RestartPlan,
        *,
        reload: Reload,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reload = reload
        self._config = config
        self._sources = sources
        self._plan = plan
        self._clock = clock
        self._all: AllWorkers | None = None  # None until the first worker has found the versions
        self._deployment: Deployment | None = None  # None until the workers serve
        self._reports = EpisodeReports(clock=clock)
        self._received_reports = ReceivedReports(self._reports)
        self._found_versions = asyncio.Event()
        self._workers: dict[int, WorkerProcess] = {}  # by number, 0 to --workers - 1
        self._deaths: deque[float] = deque(maxlen=_MAX_DEATHS)
        self._stopping = False
        self._heartbeat = Heartbeat(clock=time.monotonic, whose="the supervisor's event loop")
        self._collectors = self._new_collectors()
        self._rejected_bundles = rejected_bundles(self._collectors)

    async def run(self) -> int:
        """Start the workers, replace those that die, and stop them after SIGTERM or SIGINT. Return the exit code.

        Raises:
            StartupError: the metrics port cannot be bound, or workers keep dying.
        """
        stop = stop_event()
        beating = asyncio.create_task(self._beat())
        collectors = self._collectors
        addresses = self._serve_metrics(collectors)
        try:
            if await finished_before(stop, self._start()):
                assert self._all
                deployment = Deployment(
                    self._sources,
                    self._all,
                    self._plan,
                    live=self._all.live,
                    keep=self._config.keep,
                    reports=self._reports,
                    clock=self._clock,
                )
                self._deployment = deployment
                control = controlled(
                    deployment,
                    self._config,
                    address=self._config.address,
                    drain=stop.set,
                    collectors=collectors,
                    reload=self._reload,
                )
                async with control as admin:
                    self._say_ready(addresses | admin)
                    await finished_before(stop, self._replace_dead())
        except WorkerEndedError as error:
            _LOGGER.error("%s before it could serve; see its last line in the log", error)
            await self._stop()
            return 1
        except BaseException:
            await self._stop()
            raise
        finally:
            beating.cancel()
        _LOGGER.info("stopping: refusing new calls, answering accepted ones")
        return await self._stop()

    async def _beat(self) -> None:
        while True:
            self._heartbeat.beat()
            await asyncio.sleep(BEAT_S)

    async def _start(self) -> None:
        """Start all workers; they open the port together. One that dies or hangs meanwhile is replaced later."""
        starting = [asyncio.ensure_future(self._start_compiled(number)) for number in range(self._config.workers)]
        try:
            workers = await asyncio.gather(*starting)
        finally:
            for task in starting:  # after a failure
                task.cancel()
        outcomes = await asyncio.gather(*(_open(worker) for worker in workers), return_exceptions=True)
        if all(isinstance(outcome, BaseException) for outcome in outcomes):
            raise next(outcome for outcome in outcomes if isinstance(outcome, BaseException))
        for outcome in outcomes:
            if isinstance(outcome, StartupError):
                _LOGGER.error("%s; it is killed", outcome)

    def _say_ready(self, addresses: dict[str, str]) -> None:
        assert self._all
        policies = " ".join(f"{name}@{version}" for name, version in self._all.live.items())
        serving = sum(worker.serves for worker in tuple(self._workers.values()))
        _LOGGER.info("%s workers=%d", ready_line(addresses, policies=policies), serving, extra=addresses)

    async def _start_compiled(self, number: int) -> WorkerProcess:
        """Start the worker `number` until it has compiled; if it is killed, start it again."""
        for left in reversed(range(_MAX_STARTS)):
            worker = await self._start_worker(number)
            try:
                await self._load(number, worker)
            except WorkerEndedError as death:
                remove_metrics(worker.pid)
                if death.exit_code > 0 or not left:
                    raise
                _LOGGER.error("%s before it could serve; starting another", death)
            else:
                return worker
        raise AssertionError("the last try returns or raises")

    async def _load(self, number: int, worker: WorkerProcess) -> None:
        """Let the worker `number` load and compile. The first one finds the versions; the others wait for them.

        Raises:
            WorkerEndedError: it ended meanwhile.
            RefusedVersionError, StartupError: it cannot load a version that became live meanwhile, or it hangs.
        """
        if number > 0:
            await self._found_versions.wait()
        cores, workers = sorted(os.sched_getaffinity(0)), self._config.workers
        share = cores[number::workers] if len(cores) >= workers else []
        choices = [[self._all.live[source.name]] for source in self._sources] if self._all else self._plan.choices
        worker.load(self._config, sources=self._sources, choices=choices, cores=share)
        timeout_s = LOAD_S * len(self._sources)
        async with _answered_within(timeout_s, worker, "loaded and compiled its policies"):
            loaded = await worker.loaded()
            live = loaded.versions
            if not self._all:
                self._all = AllWorkers(live, on_lost=self._forget, on_rejected=self._count_rejected)
                for reason in loaded.rejected:
                    self._count_rejected(reason)
            self._found_versions.set()
            await worker.compiled()
        await self._all.join(worker, live=live)

    async def _replace_dead(self) -> None:
        """Replace every worker that dies. Does not return."""
        replacing = [asyncio.ensure_future(self._replace_when_dead(number)) for number in self._workers]
        try:
            await asyncio.gather(*replacing)
        finally:
            for task in replacing:  # after a failure, workers that are stopped must not be replaced
                task.cancel()

    async def _replace_when_dead(self, number: int) -> None:
        while True:
            pid, code = self._workers[number].pid, await self._workers[number].ended()
            mark_process_dead(pid)
            death = WorkerEndedError(pid, code)
            self._count(death)
            _LOGGER.error("%s; starting another", death)
            worker = await self._replacement(number)
            _LOGGER.info("worker %d serves in place of worker %d", worker.pid, pid)

    async def _replacement(self, number: int) -> WorkerProcess:
        """Start a worker, again and again until it serves. While other workers serve, no failure ends them.

        Raises:
            StartupError: no worker serves, and workers keep dying.
        """
        while True:
            worker = await self._start_until_possible(number)
            try:
                await self._load(number, worker)
                await _open(worker)
            except (RefusedVersionError, StartupError) as error:
                _LOGGER.error("a worker cannot serve what the others do: %s; starting another in %g s", error, _RETRY_S)
                del self._workers[number]  # it never served, so its exit code says nothing about the server's end
                worker.kill()
                await worker.ended()
                remove_metrics(worker.pid)
                await asyncio.sleep(_RETRY_S)
            except WorkerEndedError as death:
                del self._workers[number]  # as above
                remove_metrics(worker.pid)
                if not any(each.serves for each in self._workers.values()):
                    self._count(death)
                _LOGGER.error("%s before it could serve; starting another in %g s", death, _RETRY_S)
                await asyncio.sleep(_RETRY_S)
            else:
                return worker

    def _count_rejected(self, reason: str) -> None:
        self._rejected_bundles.labels(reason).inc()

    async def _forget(self, policy: str, version: int) -> None:
        if self._deployment:
            await self._deployment.forget(policy, version)

    def _count(self, death: WorkerEndedError) -> None:
        """Count a death. Raises StartupError if there were too many within `_WITHIN_S`."""
        self._deaths.append(self._clock())
        if len(self._deaths) == _MAX_DEATHS and self._deaths[-1] - self._deaths[0] < _WITHIN_S:
            raise StartupError(
                f"{death}; {_MAX_DEATHS} workers ended within {_WITHIN_S:g} s, and the log has their last lines"
            )

    async def _start_until_possible(self, number: int) -> WorkerProcess:
        """Start a worker; while the machine lacks a resource for it, try again. The other workers go on."""
        while True:
            try:
                return await self._start_worker(number)
            except OSError as error:
                _LOGGER.error(
                    "cannot start a worker: %s; trying again in %g s", shortage(error) or error.strerror, _RETRY_S
                )
                await asyncio.sleep(_RETRY_S)

    async def _stop(self) -> int:
        """Stop the workers, and return the exit code: 0 if each stopped cleanly."""
        self._stopping = True
        workers = self._workers.values()
        for worker in workers:
            worker.terminate()
        ends = [asyncio.ensure_future(worker.ended()) for worker in workers]
        if ends:
            _, late = await asyncio.wait(ends, timeout=self._config.grace_s + _EXIT_S)
            if late:
                _LOGGER.error("%d workers did not stop; killing them", len(late))
                for worker in workers:
                    worker.kill()
        codes = {await end for end in ends}
        return 0 if codes <= {0, -signal.SIGTERM} else 1  # -SIGTERM: it did not handle signals yet

    async def _start_worker(self, number: int) -> WorkerProcess:
        worker = self._workers[number] = await WorkerProcess.start()
        worker.on_message = self._received_reports.receive
        return worker

    def _serve_metrics(self, collectors: CollectorRegistry) -> dict[str, str]:
        """Answer probes and, unless they are off, serve the sums of the workers' metrics. Return all addresses."""
        config = self._config
        ports = {"grpc": str(config.address)} | (
            {"http": config.http_url(config.http_address)} if config.http_address else {}
        )
        shown = collectors if config.metrics else None
        server = MetricsServer(shown, config.metrics_host, port=config.metrics_port, problem=self._problem)
        return ports | server.addresses()

    def _new_collectors(self) -> CollectorRegistry:
        collectors = CollectorRegistry()
        collectors.register(WorkersCollector())
        collectors.register(
            ProcessesCollector(lambda: [os.getpid(), *(each.pid for each in tuple(self._workers.values()))])
        )
        collectors.register(ConnectionsCollector(self._config.address))
        if self._config.http_address:
            collectors.register(ConnectionsCollector(self._config.http_address, protocol="http"))
        collectors.register(ReportsCollector(self._reports))
        gauge = Gauge("kilolayer_workers", "Worker processes that serve.", registry=collectors)
        gauge.set_function(lambda: sum(worker.serves for worker in tuple(self._workers.values())))
        return collectors

    def _problem(self) -> str:
        """Return why the server does not serve all its connections now; empty if it does. Called from other threads.

        A worker that ended gets no connections. One that does not respond still gets its share of them.
        """
        workers = tuple(self._workers.values())
        if self._stopping:
            return "the server is stopping"
        if not any(worker.serves for worker in workers):
            return "no worker serves"
        return self._heartbeat.problem() or "; ".join(filter(None, (worker.problem for worker in workers)))


async def _open(worker: WorkerProcess) -> None:
    """Let a worker open the port. One that hangs is killed.

    Raises:
        WorkerEndedError: it ended meanwhile.
        StartupError: it hangs.
    """
    try:
        async with _answered_within(_OPEN_S, worker, "opened the port"):
            await worker.open()
    except StartupError:
        worker.kill()
        raise


@contextlib.asynccontextmanager
async def _answered_within(timeout_s: float, worker: WorkerProcess, done: str) -> AsyncGenerator[None]:
    """Raise StartupError if the context, which waits until a worker has `done` something, takes longer."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError as error:
        raise StartupError(
            f"worker {worker.pid} has not {done} within {timeout_s:g} s (its last line in the log may say why)"
        ) from error
