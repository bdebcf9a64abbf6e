"""Compile policies, check that the compiled functions give the stored actions, and count later compilations."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import jax.monitoring
import numpy as np
from prometheus_client import Counter

from policy.bundle import PROBE_TOLERANCE, Bundle
from serving.engine.engine import Engine, Kind
from serving.errors import StartupError

_LOGGER = logging.getLogger(__name__)
_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"  # JAX records it at every compilation


async def compile_policy(bundle: Bundle, *, max_batch_rows: int, clock: Callable[[], float] = time.monotonic) -> Engine:
    """Compile every batch size of a policy and check its probes.

    Compilation runs in another thread, so that the event loop answers health checks and signals meanwhile.

    Raises:
        StartupError: the compiled policy does not give the actions that were stored with it.
    """
    engine = Engine(bundle.params, bundle.spec, max_rows=max_batch_rows)
    started_s = clock()
    for kind, buckets in engine.buckets.items():
        for bucket in buckets:
            await asyncio.to_thread(engine.compile, kind, bucket)
    await asyncio.to_thread(_check_probes, engine, bundle)
    _LOGGER.info(
        "compiled %s@%d in %.1f s: %d executables; maximum rows in a batch: %d; maximum batches at a time: %d",
        bundle.spec.name,
        bundle.version,
        clock() - started_s,
        engine.compilations,
        engine.max_rows,
        engine.max_concurrency,
    )
    return engine


def _check_probes(engine: Engine, bundle: Bundle) -> None:
    rows = np.concatenate([bundle.probes.state, bundle.probes.goal], axis=1)
    for start in range(0, len(rows), engine.max_rows):
        part = slice(start, start + engine.max_rows)
        error = np.max(np.abs(engine.compute(Kind.ACT, rows[part]) - bundle.probes.action[part]))
        if not error <= PROBE_TOLERANCE:  # also true for NaN
            raise StartupError(
                f"{bundle.path}, compiled for this machine, differs from its stored actions by {error:.2g}; publish it"
                " again on this machine, or serve it on another"
            )


class CompilationCounter:
    """Counts JAX's compilations between `start` and `stop`."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._started = False

    def start(self) -> None:
        """Count from now on."""
        jax.monitoring.register_event_duration_secs_listener(self._count)
        self._started = True

    def stop(self) -> None:
        """Stop counting. No effect if it was never started."""
        if self._started:
            jax.monitoring.unregister_event_duration_listener(self._count)
            self._started = False

    def _count(self, event: str, duration_secs: float, **_details: Any) -> None:  # noqa: ARG002  JAX's names
        if event == _COMPILE_EVENT:
            self._counter.inc()
