"""The parent of several workers on one port: it starts them, speaks for them all, replaces one that dies, stops them.

A port that is bound with SO_REUSEPORT can be shared; the kernel deals new connections out among those who listen. The
parent holds it, bound and not listening, so that nobody else takes it while no worker listens. Health is each worker's
own and says the same of all: they open the port together, when every one of them has compiled, and a replacement opens
it when it is ready to answer. Each worker counts in files (Prometheus' multiprocess mode), and the parent policies the
sums. The first worker says which versions it found; the others, and replacements, serve exactly those.
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
from serving.telemetry.metrics import ProcessesCollector
from serving.telemetry.metrics_server import MetricsServer
from serving.workers.shutdown import stop_event, unless
from serving.workers.worker_process import WorkerEndedError, WorkerProcess

_LOGGER = logging.getLogger(__name__)

_MOST_DEATHS, _WITHIN_S = 5, 60.0  # more, and something is wrong that a replacement does not mend
_LAST_WORD_S = 5.0  # beyond the grace, for a worker to end by itself


def supervise(config: ServeConfig) -> int:
    """Serve with `config.workers` workers until SIGTERM or SIGINT, and return the exit code."""
    try:
        with _folder() as folder, hold_port(config.host, config.port) as port:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # where the workers count
            return asyncio.run(Supervisor(dataclasses.replace(config, port=port)).run())
    except StartupError as error:
        _LOGGER.error("%s", error)
        return 1


def _folder() -> "tempfile.TemporaryDirectory[str]":
    """A folder for the workers to count in, which goes with its context.

    Raises:
        StartupError: there is no place for one.
    """
    try:
        return tempfile.TemporaryDirectory(prefix="kilolayer-")
    except OSError as error:
        raise StartupError(
            "workers count in a folder for temporary files, and none can be made; name a writable place, with room, in"
            " TMPDIR"
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
        self._children: dict[int, WorkerProcess] = {}  # by place, 0 to workers - 1
        self._deaths: deque[float] = deque(maxlen=_MOST_DEATHS)

    async def run(self) -> int:
        """Start the workers, keep their number, and stop them when told to. Returns the exit code.

        Raises:
            StartupError: the metrics' port cannot be had, or workers keep dying.
        """
        stop = stop_event()
        addresses = {"grpc": join_address(self._config.host, self._config.port)} | self._offer_metrics()
        try:
            if await unless(stop, self._start(addresses)):
                await unless(stop, self._keep())
        except WorkerEndedError as error:
            _LOGGER.error("%s before it could serve; its own last line says why", error)
            await self._end()
            return 1
        except BaseException:
            await self._end()
            raise
        _LOGGER.info("stopping: new calls are refused, accepted ones answered")
        return await self._end()

    async def _start(self, addresses: dict[str, str]) -> None:
        """Bring up all workers; they open the port together."""
        first = self._child(0)
        self._versions = (await first.loaded()).versions
        children = [first, *map(self._child, range(1, self._config.workers))]
        await asyncio.gather(*(child.compiled() for child in children))
        policies = (await asyncio.gather(*(child.open() for child in children)))[0].policies
        line = f"ready: grpc={addresses['grpc']} metrics={addresses.get('metrics', 'off')} policies={policies}"
        _LOGGER.info("%s workers=%d", line, len(children), extra=addresses)

    async def _keep(self) -> None:
        """Replace every worker that dies, for ever."""
        keepers = [asyncio.ensure_future(self._keep_one(place)) for place in self._children]
        try:
            await asyncio.gather(*keepers)
        finally:
            for keeper in keepers:  # one that gives up leaves the others none to replace
                keeper.cancel()

    async def _keep_one(self, place: int) -> None:
        while True:
            pid, code = self._children[place].pid, await self._children[place].ended()
            mark_process_dead(pid)
            death = WorkerEndedError(pid, code)
            self._deaths.append(self._clock())
            if len(self._deaths) == _MOST_DEATHS and self._deaths[-1] - self._deaths[0] < _WITHIN_S:
                raise StartupError(
                    f"{death}, and so {_MOST_DEATHS} within {_WITHIN_S:g} s; the log holds their last lines"
                )
            _LOGGER.error("%s; starting another", death)
            try:
                child = self._child(place)
                await child.compiled()
                await child.open()
            except WorkerEndedError:
                continue  # it is the next one that died
            _LOGGER.info("worker %d serves in the place of worker %d", child.pid, pid)

    async def _end(self) -> int:
        """Stop the workers, and return the exit code: 0 if each stopped cleanly."""
        children = self._children.values()
        for child in children:
            child.terminate()
        ends = [asyncio.ensure_future(child.ended()) for child in children]
        if ends:
            _, late = await asyncio.wait(ends, timeout=self._config.grace_s + _LAST_WORD_S)
            if late:
                _LOGGER.error("%d workers did not stop; killing them", len(late))
                for child in children:
                    child.kill()
        codes = {await end for end in ends}
        return 0 if codes <= {0, -signal.SIGTERM} else 1  # the latter: it had not begun to listen to signals

    def _child(self, place: int) -> WorkerProcess:
        """Start the worker for `place`, on its share of the cores if there are enough."""
        cores, workers = sorted(os.sched_getaffinity(0)), self._config.workers
        share = cores[place::workers] if len(cores) >= workers else []
        config = dataclasses.replace(self._config, metrics=False)
        self._children[place] = WorkerProcess(config, versions=self._versions, cores=share)
        return self._children[place]

    def _offer_metrics(self) -> dict[str, str]:
        """Open the port of the metrics, if they are wanted; its address, for the ready line."""
        config = self._config
        if not config.metrics:
            return {}
        collectors = CollectorRegistry()
        MultiProcessCollector(collectors)
        collectors.register(
            ProcessesCollector(lambda: [os.getpid(), *(child.pid for child in self._children.values())])
        )
        gauge = Gauge("kilolayer_workers", "Worker processes that serve.", registry=collectors)
        gauge.set_function(lambda: sum(child.serves for child in self._children.values()))
        return {"metrics": MetricsServer(collectors, config.host, port=config.metrics_port).url}
