"""Supervisor: starts several workers on one port, serves their metrics, replaces one that dies, and stops them.

Several processes can listen on one port that each binds with SO_REUSEPORT; the kernel distributes new connections among
them. The supervisor holds the port, bound and not listening, so that no other program takes it while no worker listens.
Each worker answers health checks itself. The answers agree, because the workers open the port together once all have
compiled, and a replacement opens it when it is ready. Each worker writes its metrics into files (Prometheus's
multiprocess mode), and the supervisor serves the sums. The first worker reports which versions it found; the others,
and replacements, serve exactly those versions.
"""

import asyncio
import dataclasses
import logging
import os
import signal
import tempfile
import time
from collections import deque
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from serving.config import ServeConfig
from serving.errors import StartupError
from serving.sockets import hold_port, join_address
from serving.telemetry.descriptors import ConnectionsCollector
from serving.telemetry.metrics import ProcessesCollector
from serving.telemetry.metrics_server import MetricsServer
from serving.workers.shutdown import finished_before, stop_event
from serving.workers.worker_process import WorkerEndedError, WorkerProcess

_LOGGER = logging.getLogger(__name__)

_MAX_DEATHS, _WITHIN_S = 5, 60.0  # after this many deaths in this time, the supervisor gives up
_EXIT_S = 5.0  # time for a worker to exit by itself after the grace period


def supervise(config: ServeConfig) -> int:
    """Serve with `config.workers` workers until SIGTERM or SIGINT, and return the exit code."""
    try:
        with _folder() as folder, hold_port(config.host, config.port) as port:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # for the workers' metrics
            return asyncio.run(Supervisor(dataclasses.replace(config, port=port)).run())
    except StartupError as error:
        _LOGGER.error("%s", error)
        return 1


def _folder() -> "tempfile.TemporaryDirectory[str]":
    """Make a folder for the workers' metrics, which is removed at the end of its context.

    Raises:
        StartupError: it cannot be made.
    """
    try:
        return tempfile.TemporaryDirectory(prefix="kilolayer-")
    except OSError as error:
        raise StartupError(
            f"cannot make a temporary folder for the workers' metrics ({error}); set TMPDIR to a writable folder with"
            " free space"
        ) from error


class Supervisor:
    """The workers of one port. Use `run`, once.

    Args:
        config: what each of them serves; its port is held.
        clock: monotonic seconds.
    """

    def __init__(self, config: ServeConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        self._versions: tuple[int, ...] | None = None
        self._workers: dict[int, WorkerProcess] = {}  # by number, 0 to --workers - 1
        self._deaths: deque[float] = deque(maxlen=_MAX_DEATHS)

    async def run(self) -> int:
        """Start the workers, replace those that die, and stop them after SIGTERM or SIGINT. Return the exit code.

        Raises:
            StartupError: the metrics port cannot be bound, or workers keep dying.
        """
        stop = stop_event()
        addresses = {"grpc": join_address(self._config.host, self._config.port)} | self._serve_metrics()
        try:
            if await finished_before(stop, self._start(addresses)):
                await finished_before(stop, self._replace_dead())
        except WorkerEndedError as error:
            _LOGGER.error("%s before it could serve; see its last line in the log", error)
            await self._stop()
            return 1
        except BaseException:
            await self._stop()
            raise
        _LOGGER.info("stopping: refusing new calls, answering accepted ones")
        return await self._stop()

    async def _start(self, addresses: dict[str, str]) -> None:
        """Start all workers; they open the port together."""
        first = await self._start_worker(0)
        self._versions = (await first.loaded()).versions
        workers = [first, *[await self._start_worker(number) for number in range(1, self._config.workers)]]
        await asyncio.gather(*(worker.compiled() for worker in workers))
        policies = (await asyncio.gather(*(worker.open() for worker in workers)))[0].policies
        line = f"ready: grpc={addresses['grpc']} metrics={addresses.get('metrics', 'off')} policies={policies}"
        _LOGGER.info("%s workers=%d", line, len(workers), extra=addresses)

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
            self._deaths.append(self._clock())
            if len(self._deaths) == _MAX_DEATHS and self._deaths[-1] - self._deaths[0] < _WITHIN_S:
                raise StartupError(
                    f"{death}; {_MAX_DEATHS} workers ended within {_WITHIN_S:g} s, and the log has their last lines"
                )
            _LOGGER.error("%s; starting another", death)
            try:
                worker = await self._start_worker(number)
                await worker.compiled()
                await worker.open()
            except WorkerEndedError:
                continue  # the replacement died
            _LOGGER.info("worker %d serves in place of worker %d", worker.pid, pid)

    async def _stop(self) -> int:
        """Stop the workers, and return the exit code: 0 if each stopped cleanly."""
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
        """Start the worker `number`, on its share of the cores if there are enough."""
        cores, workers = sorted(os.sched_getaffinity(0)), self._config.workers
        share = cores[number::workers] if len(cores) >= workers else []
        config = dataclasses.replace(self._config, metrics=False)
        self._workers[number] = await WorkerProcess.start(config, versions=self._versions, cores=share)
        return self._workers[number]

    def _serve_metrics(self) -> dict[str, str]:
        """Serve the sums of the workers' metrics, unless they are off. Return the address, for the ready line."""
        config = self._config
        if not config.metrics:
            return {}
        collectors = CollectorRegistry()
        MultiProcessCollector(collectors)
        collectors.register(ProcessesCollector(lambda: [os.getpid(), *(each.pid for each in self._workers.values())]))
        collectors.register(ConnectionsCollector(config.port))
        gauge = Gauge("kilolayer_workers", "Worker processes that serve.", registry=collectors)
        gauge.set_function(lambda: sum(worker.serves for worker in self._workers.values()))
        return {"metrics": MetricsServer(collectors, config.host, port=config.metrics_port).url}
