"""Server: builds everything, says when it is healthy, and drains.

Policies are loaded first, so that a damaged one is reported before a port is open. The ports open next, with health
NOT_SERVING and calls answered UNAVAILABLE; once every bucket of every policy is compiled, health says SERVING. To
drain: health says NOT_SERVING for good, new calls are answered UNAVAILABLE, admitted ones are computed and answered,
and only then do the ports close.
"""

import asyncio
import functools
import gc
import logging
import time
from collections.abc import Callable, Sequence
from threading import Thread
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIServer

import grpc.aio
import jax
import jax.monitoring
import numpy as np
from grpc_health.v1 import health_pb2_grpc
from prometheus_client import CollectorRegistry, ProcessCollector

from policy.bundle import PROBE_TOLERANCE, Bundle
from policy.spec import PolicySpec
from serving.api.handlers import Calls
from serving.api.health import Health
from serving.api.open_inference.service import OpenInferenceService
from serving.api.policy_service import PolicyService
from serving.batching.batcher import Batcher
from serving.batching.scheduler import BatchingPolicy
from serving.config import ServeConfig
from serving.engine.engine import Engine, Kind
from serving.errors import StartupError
from serving.policies import store
from serving.policies.registry import PolicyRegistry, ServedPolicy
from serving.sockets import bind_error, join_address
from serving.telemetry.metrics import DeviceMemoryCollector, Metrics
from serving.telemetry.metrics_server import serve_metrics

if TYPE_CHECKING:
    from serving.api.tracing import Tracing

_LOGGER = logging.getLogger(__name__)

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"  # JAX's own, recorded at every compilation
_ENVELOPE_BYTES = 65536  # of a request besides its rows: names, tags, and fields of later versions
_VALUE_BYTES = 8  # a float is 4 on the wire, 5 unpacked; the rest lets a call with too many rows reach our own message
_SETTLE_S = 0.1  # for calls on their way when the last answer was given: they arrive and are held
_LAST_WORD_S = 1.0  # to send what was computed, however late it is
_PENDING_CALLS = 65536  # gRPC's default of 1000 cancels calls silently in a burst, before the queue could shed them


class Server:
    """One server from bound ports to closed ones. Use `start` and `prepare` in either order, then `open`, `drain`.

    Args:
        config: what to serve and where.
        bundles: the verified policies, by name.
        metrics: registered with `registry`.
        registry: what the metrics port shows.
        tracing: makes a span of every call; None: none are made.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        config: ServeConfig,
        *,
        bundles: dict[str, Bundle],
        metrics: Metrics,
        registry: CollectorRegistry,
        tracing: "Tracing | None" = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        default = config.default_policy or next(iter(bundles))
        if default not in bundles:
            raise StartupError(f"there is no policy {default} to be the default; there are: {', '.join(bundles)}")
        self._config = config
        self._bundles = bundles
        self._metrics = metrics
        self._registry = registry
        self._clock = clock
        self._live: dict[str, ServedPolicy] = {}
        self._counting = False
        self._policies = PolicyRegistry(frozenset(bundles), default=default)
        self._calls = Calls(metrics, tracing=tracing, clock=clock)
        service = PolicyService(self._policies, calls=self._calls, max_rows=config.max_call_rows)
        self._health = Health(bundles)
        open_inference = OpenInferenceService(self._policies, calls=self._calls, metrics=metrics, config=config)
        self._handlers = service.handlers(), open_inference.handlers()
        self._grpc: grpc.aio.Server | None = None  # made by `start`: one that never starts complains when Python ends
        self._metrics_server: tuple[WSGIServer, Thread] | None = None
        self.port = 0  # those that are bound; 0 before `start`
        self.metrics_port = 0

    async def start(self) -> None:
        """Open the ports; health says NOT_SERVING.

        Raises:
            StartupError: a port cannot be had.
        """
        config = self._config
        server = grpc.aio.server(options=_grpc_options([bundle.spec for bundle in self._bundles.values()], config))
        server.add_generic_rpc_handlers(self._handlers)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        try:
            self.port = server.add_insecure_port(join_address(config.host, config.port))
        except RuntimeError as error:
            raise bind_error("port", config.host, port=config.port) from error
        if config.metrics:
            self._metrics_server = serve_metrics(self._registry, config.host, port=config.metrics_port)
            self.metrics_port = self._metrics_server[0].server_port
        await self._health.set_all(serving=False)
        await server.start()
        self._grpc = server

    async def prepare(self) -> None:
        """Compile every bucket of every policy and check the policies' probes.

        Raises:
            StartupError: a compiled policy does not give the actions that were stored with it.
        """
        config = self._config
        batching = BatchingPolicy(
            max_queue_rows=config.max_queue_rows,
            max_queue_age_s=config.max_queue_age_s,
            max_batch_delay_s=config.max_batch_delay_s,
        )
        for name, bundle in self._bundles.items():
            engine = await self._compile(bundle)
            metrics = self._metrics.for_policy(name)
            self._live[name] = ServedPolicy(
                bundle, Batcher(engine, policy=batching, metrics=metrics, clock=self._clock)
            )
        # What lives now lives as long as the server: collections need not walk through it and hold up calls.
        gc.collect()
        gc.freeze()
        jax.monitoring.register_event_duration_secs_listener(self._count_compilation)
        self._counting = True

    async def open(self) -> None:
        """Answer calls, and say SERVING."""
        for name, bundle in self._bundles.items():
            self._metrics.live_version.labels(name).set(bundle.version)
        self._policies.open(self._live)
        await self._health.set_all(serving=True)

    async def drain(self) -> bool:
        """Refuse new calls, answer the admitted ones, close the ports. Returns whether all were answered in time."""
        assert self._grpc, "there is nothing to drain before `start`"
        ends_s = self._clock() + self._config.grace_s
        await self._health.close()
        self._calls.close()
        batchers = [served.batcher for served in self._live.values()]
        drained = await asyncio.gather(*(batcher.drain(grace_s=self._config.grace_s) for batcher in batchers))
        await asyncio.sleep(_SETTLE_S)
        stopping = asyncio.create_task(self._grpc.stop(max(ends_s - self._clock(), _LAST_WORD_S)))
        await asyncio.sleep(0)  # by now gRPC is shutting down, and lets no new call in
        self._calls.let_go()
        await stopping
        if self._counting:
            jax.monitoring.unregister_event_duration_listener(self._count_compilation)
        if self._calls.tracing:
            await asyncio.to_thread(self._calls.tracing.close)
        if self._metrics_server:
            await asyncio.to_thread(_close_metrics, *self._metrics_server)
        return all(drained)

    def addresses(self) -> dict[str, str]:
        """Where to reach the server, for programs that read the log: `grpc`, and `metrics` if they are offered."""
        host, metrics = self._config.host, {}
        if self._config.metrics:
            metrics = {"metrics": f"http://{join_address(host, self.metrics_port)}/metrics"}
        return {"grpc": join_address(host, self.port)} | metrics

    def ready_line(self) -> str:
        """One line with the addresses and the policies."""
        addresses = self.addresses()
        metrics = addresses.get("metrics", "off")
        return f"ready: grpc={addresses['grpc']} metrics={metrics} policies={self.policies_line()}"

    def policies_line(self) -> str:
        """The policies and their versions, on one line."""
        return " ".join(f"{name}@{bundle.version}" for name, bundle in self._bundles.items())

    def versions(self) -> tuple[int, ...]:
        """Of the policies, in the order of their folders."""
        return tuple(bundle.version for bundle in self._bundles.values())

    async def _compile(self, bundle: Bundle) -> Engine:
        """Compile off the event loop, one bucket at a time, so that health answers and a signal is heard meanwhile."""
        spec = bundle.spec
        engine = Engine(bundle.params, spec, max_rows=self._config.max_batch_rows)
        started_s = self._clock()
        for kind, buckets in engine.buckets.items():
            for bucket in buckets:
                await asyncio.to_thread(engine.compile, kind, bucket)
        await asyncio.to_thread(_check_probes, engine, bundle)
        took_s = self._clock() - started_s
        _LOGGER.info(
            "compiled %s@%d in %.1f s: %d executables for batches of up to %d rows, %d at once",
            spec.name,
            bundle.version,
            took_s,
            engine.compilations,
            engine.max_rows,
            engine.max_concurrency,
        )
        return engine

    def _count_compilation(self, event: str, duration_secs: float, **_details: Any) -> None:  # noqa: ARG002  JAX's names
        if event == _COMPILE_EVENT:
            self._metrics.compilations.inc()


async def load(
    config: ServeConfig,
    *,
    registry: CollectorRegistry | None = None,
    tracing: "Tracing | None" = None,
    versions: Sequence[int] | None = None,
) -> Server:
    """Load and verify the policies that `config` names.

    Args:
        registry: for the metrics; None: a fresh one, with those of the process and of its devices.
        tracing: makes a span of every call; None: as `config` says.
        versions: of the policies, in the order of their folders; None: the newest that verify.

    Raises:
        StartupError: a folder holds no usable policy, or OpenTelemetry is wanted and not installed.
    """
    if registry is None:
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(DeviceMemoryCollector(jax.local_devices()))
    metrics = Metrics(registry)

    def count_rejected(reason: str) -> None:
        metrics.bundles_rejected.labels(reason).inc()

    # In a thread, since Orbax runs an event loop of its own.
    load_all = functools.partial(store.load_all, versions=versions, on_rejected=count_rejected)
    if config.tracing and tracing is None:
        tracing = _tracing()
    bundles = await asyncio.to_thread(load_all, config.policies)
    return Server(config, bundles=bundles, metrics=metrics, registry=registry, tracing=tracing)


def _tracing() -> "Tracing":
    try:
        from serving.api.tracing import otlp
    except ImportError as error:
        raise StartupError("tracing needs OpenTelemetry: pip install 'kilolayer-stack[tracing]'") from error
    return otlp()


def _check_probes(engine: Engine, bundle: Bundle) -> None:
    """Compare the compiled policy, as it will be called, with the actions stored when it was published."""
    rows = np.concatenate([bundle.probes.state, bundle.probes.goal], axis=1)
    for start in range(0, len(rows), engine.max_rows):
        part = slice(start, start + engine.max_rows)
        worst = np.max(np.abs(engine.compute(Kind.ACT, rows[part]) - bundle.probes.action[part]))
        if not worst <= PROBE_TOLERANCE:  # NaN is not
            raise StartupError(
                f"{bundle.path}, compiled for this machine, misses its stored actions by {worst:.2g}; publish it again"
                " here, or serve it elsewhere"
            )


def _grpc_options(specs: list[PolicySpec], config: ServeConfig) -> list[tuple[str, int]]:
    row_dim = max(spec.state_dim + spec.goal_dim + spec.action_dim for spec in specs)
    return [
        # Shared among workers only: otherwise two servers would share a port, and calls, without a word.
        ("grpc.so_reuseport", int(config.workers > 1)),
        ("grpc.max_receive_message_length", config.max_call_rows * row_dim * _VALUE_BYTES + _ENVELOPE_BYTES),
        ("grpc.server.max_pending_requests", _PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", 2 * _PENDING_CALLS),
        # A silent peer is dropped within 15 s; clients may ping every second, between calls too (default: 5 minutes).
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ]


def _close_metrics(server: WSGIServer, thread: Thread) -> None:
    server.shutdown()
    server.server_close()
    thread.join()
