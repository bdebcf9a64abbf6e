"""Server: builds the parts of one server, and starts, opens and drains it.

Policies are loaded first (`serving.loading`), so that a damaged one is reported before a port is open. Then the ports
open; health is NOT_SERVING and calls get UNAVAILABLE. Once every batch size of every policy is compiled, health is
SERVING; with `--serve-when first-batch` it is once one row can be computed, and the other sizes are compiled meanwhile.
While the server drains, health is NOT_SERVING, new calls get UNAVAILABLE, and admitted calls are computed and answered.
Then the ports close.
"""

import asyncio
import functools
import gc
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry

from policy.bundle import Bundle
from serving.access import handshakes
from serving.access.tls import Certificates
from serving.access.token_watch import TokenWatch
from serving.api import request_bytes
from serving.api.admin_server import admin_connections
from serving.api.grpc_transport import GrpcTransport
from serving.api.handlers import RpcHandlers
from serving.api.health import Health
from serving.api.http_port import http_connections, http_transport
from serving.api.observers import Observers
from serving.api.open_inference.service import OpenInferenceService
from serving.api.policy_service import PolicyService
from serving.api.range_check import RangeCheck
from serving.api.rpc import RpcService
from serving.config import ServeConfig
from serving.engine import compiler_threads
from serving.engine.thread_priority import run_in_background, run_in_thread
from serving.errors import BrokenError, StartupError
from serving.policies.compilation import CompilationCounter
from serving.policies.episode_reports import ReportSink
from serving.policies.host import PolicyHost
from serving.policies.registry import PolicyRegistry
from serving.policies.source import PolicySource
from serving.sockets import Address
from serving.telemetry.descriptors import ConnectionsCollector, DescriptorWatch, max_connections
from serving.telemetry.freed_memory import FreedMemory, trim
from serving.telemetry.heartbeat import BEAT_S, Heartbeat
from serving.telemetry.logs import dropped_lines, log_failure
from serving.telemetry.metrics import Metrics
from serving.telemetry.metrics_server import MetricsServer
from serving.telemetry.row_files import RowFolder
from serving.telemetry.row_log import RowLog

if TYPE_CHECKING:
    from serving.api.tracing import Tracing

_LOGGER = logging.getLogger(__name__)

_BROKEN_GRACE_S = 1.0  # at most, for what other threads compute, if a device failed or hangs
_ARRIVAL_S = 0.1  # for calls that were sent before the last answer to arrive; they are held
_SPANS_S = 1.0  # for a collector to take the last spans
_MIN_SEND_S = 1.0  # at least, to send computed answers, even after the grace period
_MAX_SEND_S = 3.0  # at most, for peers that are slow to receive the last answers


class Server:
    """One server from its start to its end. Call `start` and `prepare` in either order, then `open`, `serve`, `drain`.

    Args:
        config: what to serve and where.
        sources: the policies that are served, in their order.
        bundles: their verified versions, by name.
        metrics: registered with `collectors`.
        collectors: what the metrics port shows.
        reports: takes the reports of robots.
        tracing: makes a span of every call; None: no spans.
        clock: monotonic seconds.

    Raises:
        StartupError: the default policy is not served, the folder for sampled rows cannot be written, or the tokens or
            the files of TLS cannot be used.
    """

    def __init__(
        self,
        config: ServeConfig,
        *,
        sources: Sequence[PolicySource],
        bundles: dict[str, Bundle],
        metrics: Metrics,
        collectors: CollectorRegistry,
        reports: ReportSink,
        tracing: "Tracing | None" = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        default = config.default_policy or next(iter(bundles))
        if default not in bundles:
            raise StartupError(f"--default-policy {default} is not served; choose one of: {', '.join(bundles)}")
        self._config = config
        self._first = {name: (bundle.spec, bundle.version) for name, bundle in bundles.items()}  # live at first
        self._metrics = metrics
        self._collectors = collectors
        self._tracing = tracing
        self._clock = clock
        self._compiled = False  # all batch sizes
        self._broken: asyncio.Future[str] = asyncio.get_running_loop().create_future()  # why
        self._compilations = CompilationCounter(metrics.compilations)
        self._policies = PolicyRegistry(frozenset(bundles), default=default)
        self.host = PolicyHost(
            sources, bundles, self._policies, config=config, metrics=metrics, clock=clock, on_broken=self._break
        )
        """Loads versions and makes them live while the server serves."""
        self._handlers = RpcHandlers(metrics, tracing=tracing, clock=clock)
        self._health = Health(bundles, names_in_errors=config.tokens is None)
        self._row_log = _row_log(config, metrics)
        observers = Observers(self._policies, reports=reports, row_log=self._row_log)
        range_check = RangeCheck(metrics, refuses=config.out_of_range == "refuse")
        policy_service = PolicyService(
            self._policies,
            handlers=self._handlers,
            max_rows=config.max_call_rows,
            range_check=range_check,
            observers=observers,
        )
        open_inference = OpenInferenceService(
            self._policies,
            handlers=self._handlers,
            metrics=metrics,
            config=config,
            range_check=range_check,
            observers=observers,
        )
        max_request_bytes = request_bytes.limit([bundle.spec for bundle in bundles.values()], config)
        self.services = (
            *(policy_service.service(), open_inference.service(), self._health.service()),
            *([_reflection()] if config.reflection else []),
        )
        """The services on the gRPC port."""
        self.tokens = TokenWatch(config.tokens) if config.tokens else None
        """The tokens that are accepted; None: calls need none."""
        connections = max_connections()
        if config.workers == 1:  # otherwise the supervisor has the port for operators
            connections = max(connections - admin_connections(config.admin_address(config.address), connections), 1)
        of_http = http_connections(config, connections)
        guard = self.tokens.guard(metrics.refused.labels, clock=clock) if self.tokens else None
        certificates = config.tls and Certificates(config.tls)
        self._transport = GrpcTransport(
            self.services,
            max_request_bytes=max_request_bytes,
            max_held_bytes=config.max_held_mb << 20,
            max_streams=config.max_streams,
            max_connections=connections - of_http,
            on_limit=metrics.memory_limit.inc,
            guard=guard,
            share_port=config.workers > 1,
            certificates=certificates,
            clock=clock,
        )
        self._http = http_transport(
            open_inference,
            config,
            handlers=self._handlers,
            held=self._transport.held,
            max_body_bytes=max_request_bytes,
            max_connections=of_http,
            metrics=metrics,
            guard=guard,
            certificates=certificates,
            clock=clock,
        )
        self._metrics_server: MetricsServer | None = None
        self._watching: list[asyncio.Task[None]] = []
        self._heartbeat = Heartbeat(clock=clock)
        self.address: Address = config.address
        """The address for gRPC; its port is known after `start`."""
        self.http_address = config.http_address
        """The address for HTTP; None: there is none."""

    async def start(self) -> None:
        """Open the ports; health is NOT_SERVING.

        Raises:
            StartupError: a port or the socket cannot be bound.
        """
        config = self._config
        if config.workers == 1:  # otherwise the supervisor has one for all
            collectors = self._collectors if config.metrics else None
            self._metrics_server = MetricsServer(
                collectors, config.metrics_host, port=config.metrics_port, problem=self._problem
            )
        self.address = await self._transport.start(config.address)
        if self._http and self.http_address:
            self.http_address = await self._http.start(self.http_address)
        if config.metrics:
            self._collectors.register(ConnectionsCollector(self.address))
            if self.http_address:
                self._collectors.register(ConnectionsCollector(self.http_address, protocol="http"))
        self._begin(self._watch(), problem="the metrics of memory and descriptors stand still; restart the server")
        if self.tokens:
            self._begin(self.tokens.run(), problem="changes of --tokens are no longer taken; restart the server")

    def _begin(self, watch: Coroutine[Any, Any, None], *, problem: str) -> None:
        """Run `watch` until the server has drained. If a bug ends it, log `problem`."""
        task = asyncio.create_task(watch)
        task.add_done_callback(functools.partial(log_failure, problem=problem))
        self._watching.append(task)

    async def _watch(self) -> None:
        """Every second, update the metrics of what is held and dropped; check the descriptors and the freed memory."""
        descriptors, freed_memory, dropped = DescriptorWatch(clock=self._clock), FreedMemory(), 0
        while True:
            self._heartbeat.beat()
            self._metrics.held_bytes.set(self._transport.held.total)
            earlier, dropped = dropped, dropped_lines()
            self._metrics.dropped_log_lines.inc(dropped - earlier)
            self._metrics.count_tls_failures(handshakes.FAILURES.take())
            descriptors.check()
            if freed_memory.is_due(self._transport.held.total):
                try:
                    await run_in_background(trim)
                except RuntimeError as error:  # there is no thread for it
                    _LOGGER.warning("freed memory is not given back: %s", error)
            await asyncio.sleep(BEAT_S)

    def _problem(self) -> str:
        """Return why the server does not serve now; empty if it does. Called from other threads."""
        if not self._health.is_serving:
            return "health is NOT_SERVING: the server is starting or stopping"
        return self._heartbeat.problem()

    async def prepare(self) -> None:
        """Compile the batch sizes that `--serve-when` names, for every policy, and check the policies' probes.

        Raises:
            StartupError: a compiled policy does not give the actions that were stored with it.
        """
        await self.host.compile_first()
        if self._config.serve_when == "all":
            await self._compile_rest()
        gc.enable()  # `serving.run` disables it for the start

    def open(self) -> None:
        """Answer calls; health is SERVING."""
        for name, (spec, _) in self._first.items():
            if self._config.out_of_range == "refuse" and not spec.seen_low:
                _LOGGER.warning("%s has no statistics of states, so --out-of-range refuse refuses none of it", name)
        self.host.open()
        self._health.set_serving()

    async def serve(self) -> None:
        """Compile the batch sizes that `prepare` has left. Does not return. Call it after `open`.

        Raises:
            StartupError: a compiled policy does not give the actions that were stored with it.
            BrokenError: a policy cannot be computed any more; health is NOT_SERVING.
        """
        compiling = asyncio.create_task(self._compile_rest())
        try:
            await asyncio.wait({compiling, self._broken}, return_when=asyncio.FIRST_COMPLETED)
            if compiling.done():
                compiling.result()
            raise BrokenError(await asyncio.shield(self._broken))  # `drain` asks it after this task was cancelled
        finally:
            compiling.cancel()

    async def _compile_rest(self) -> None:
        """Compile the batch sizes that are left; no effect if all are compiled."""
        if self._compiled:
            return
        await self.host.compile_rest()
        self._compiled = True
        compiler_threads.set_lowest_priority()  # what is compiled from now on is compiled while others answer
        # Garbage collections skip the objects that exist now, which live as long as the server, so they are shorter.
        gc.collect()
        gc.freeze()
        self._compilations.start()

    async def drain(self) -> bool:
        """Refuse new calls, answer the admitted ones, close the ports. Return whether all were answered in time."""
        grace_s = min(self._config.grace_s, _BROKEN_GRACE_S) if self._broken.done() else self._config.grace_s
        ends_s = self._clock() + grace_s
        self._health.close()
        self._handlers.begin_draining()
        drained = await self.host.drain(grace_s=grace_s)
        await asyncio.sleep(_ARRIVAL_S)
        send_s = min(max(ends_s - self._clock(), _MIN_SEND_S), _MAX_SEND_S)
        transports = [self._transport, *([self._http] if self._http else [])]
        stopping = [asyncio.create_task(transport.stop(send_s)) for transport in transports]
        await asyncio.sleep(0)  # after this the transports are stopping and accept no new call
        self._handlers.refuse_held()
        await asyncio.gather(*stopping)
        self._compilations.stop()
        if self._row_log:
            await asyncio.to_thread(self._row_log.close)
        for task in self._watching:
            task.cancel()
        if self._tracing:
            await self._send_spans(self._tracing)
        if self._metrics_server:
            await asyncio.to_thread(self._metrics_server.close)
        return drained

    async def _send_spans(self, tracing: "Tracing") -> None:
        """Send the last spans, unless their collector does not take them."""
        try:
            await asyncio.wait_for(run_in_thread(tracing.close), _SPANS_S)
        except TimeoutError:
            _LOGGER.warning("the last spans are lost: their collector did not take them within %g s", _SPANS_S)

    def _break(self, policy: str, cause: str) -> None:
        """Take no more calls, because `policy` cannot be computed any more."""
        if not self._broken.done():
            self._health.close()
            self._broken.set_result(f"policy {policy} cannot be computed any more: {cause}")

    def addresses(self) -> dict[str, str]:
        """Return the addresses of the server by name, for programs that read the log.

        They are `grpc`, `http` if there is one, `health`, and `metrics` unless off. A worker has only the first two.
        """
        addresses = {"grpc": str(self.address)}
        if self.http_address:
            addresses["http"] = self._config.http_url(self.http_address)
        if self._metrics_server:
            addresses |= self._metrics_server.addresses()
        return addresses

    def policies_line(self) -> str:
        """Return the policies and their versions that are live at first, on one line."""
        return " ".join(f"{name}@{version}" for name, version in self.versions().items())

    def versions(self) -> Mapping[str, int]:
        """Return the version of each policy that is live at first."""
        return {name: version for name, (_, version) in self._first.items()}


def _reflection() -> RpcService:
    from serving.api import reflection  # only --reflection needs it

    return reflection.service()


def _row_log(config: ServeConfig, metrics: Metrics) -> RowLog | None:
    if not config.log_rows:
        return None
    share, folder = config.log_rows
    files = RowFolder(folder, max_bytes=config.log_rows_mb * 2**20, writers=config.workers)
    return RowLog(files, share=share, metrics=metrics)
