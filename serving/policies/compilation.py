"""Compile policies, check that the compiled functions give the probes' results, and count later compilations."""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import jax.monitoring
import numpy as np
from prometheus_client import Counter

from policy.bundle import PROBE_SEED, Bundle
from serving.engine.engine import Engine, Kind, noise_columns
from serving.engine.thread_priority import BACKGROUND
from serving.errors import ProbeError

_LOGGER = logging.getLogger(__name__)
_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"  # JAX records it at every compilation


class PolicyCompiler:
    """Compiles the batch sizes of one policy: `compile_first`, then `compile_largest`, then `compile_rest`.

    Compilation runs in another thread, so that the event loop answers requests and signals meanwhile. After each of the
    three, `engine` computes every kind of work, in batches of the sizes that are compiled. What the engine has already,
    because it reuses another one's functions, is not compiled again.

    Args:
        bundle: the policy.
        max_batch_rows: the largest batch size, a power of two.
        device: that computes the policy, see `serving.engine.devices.find_device`.
        like: an engine whose compiled functions are used if they fit, see `Engine.reuse`.
        read_s: seconds that reading and verifying `bundle` took; None: that is not logged.
        run: awaits a function with its arguments in another thread.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        max_batch_rows: int,
        device: str = "",
        like: Engine | None = None,
        read_s: float | None = None,
        run: Callable[..., Awaitable[Any]] = asyncio.to_thread,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine = Engine(bundle.params, bundle.spec, max_rows=max_batch_rows, device=device)
        """What is compiled so far."""
        self.reuses = like is not None and self.engine.reuse(like)
        """Whether it uses the compiled functions of `like`."""
        self.bundle = bundle
        self._run = run
        self._clock = clock
        self._first, self._largest, self._rest = stages(self.engine.buckets)
        self._read_s = read_s
        self._took_s = 0.0  # to compile, and to check the probes

    async def compile_all(self) -> None:
        """Compile every batch size, as the three methods below do.

        Raises:
            ProbeError: the compiled policy does not give the actions that were stored with it.
        """
        await self.compile_first()
        await self.compile_largest()
        await self.compile_rest()

    async def compile_first(self) -> None:
        """Compile the smallest batch size of every kind of work, one row, and check the policy's probes.

        Raises:
            ProbeError: the compiled policy does not give the actions that were stored with it.
        """
        await self._compile(self._first, check=True)

    async def compile_largest(self) -> None:
        """Compile the largest batch size of every kind of work."""
        await self._compile(self._largest)

    async def compile_rest(self) -> None:
        """Compile the other batch sizes, check the probes once more, and log how long all of it took.

        Raises:
            ProbeError: the compiled policy does not give the actions that were stored with it.
        """
        await self._compile(self._rest, check=True)
        engine, spec = self.engine, self.bundle.spec
        if self._read_s is None:
            took = f"compiled {spec.name}@{self.bundle.version} in {self._took_s:.1f} s"
        else:
            done = "loaded" if self.reuses else "loaded and compiled"
            took = (
                f"{done} {spec.name}@{self.bundle.version} in {self._read_s + self._took_s:.1f} s, of which reading and"
                f" verifying took {self._read_s:.1f} s"
            )
        _LOGGER.info(
            "%s: %d executables; maximum rows in a batch: %d; maximum batches at a time: %d",
            took,
            engine.compilations,
            engine.max_rows,
            engine.max_concurrency,
        )

    async def _compile(self, stage: Sequence[tuple[Kind, int]], *, check: bool = False) -> None:
        """Compile what is missing of `stage`, and check the probes if `check`."""
        started_s = self._clock()
        for kind, bucket in stage:
            if not self.engine.is_compiled(kind, bucket):
                self.engine.add(await self._run(self.engine.build, kind, bucket))
        if check:
            await self._run(_check_probes, self.engine, self.bundle)
        self._took_s += self._clock() - started_s


def stages(buckets: Mapping[Kind, Sequence[int]]) -> tuple[list[tuple[Kind, int]], ...]:
    """Return what is compiled first, second and third: the smallest bucket of every kind, the largest, the others."""
    first = [(kind, sizes[0]) for kind, sizes in buckets.items()]
    largest = [(kind, sizes[-1]) for kind, sizes in buckets.items() if len(sizes) > 1]
    rest = [(kind, size) for kind, sizes in buckets.items() for size in sizes[1:-1]]
    return first, largest, rest


def _check_probes(engine: Engine, bundle: Bundle) -> None:
    """Compare everything that the compiled policy computes with its probes: actions, sampled actions, energies."""
    probes = bundle.probes
    noise = noise_columns(PROBE_SEED, rows=len(probes.state), candidates=1)
    action = _compute_in_batches(engine, Kind.ACT, probes.state, probes.goal)
    sampled = _compute_in_batches(engine, Kind.SAMPLE, probes.state, probes.goal, noise)
    energy = probes.energy
    if bundle.spec.has_critic:
        energy = _compute_in_batches(engine, Kind.SCORE, probes.state, probes.action, probes.goal)
    if difference := probes.difference(action, sampled, energy=energy):
        raise ProbeError(
            f"{bundle.path}, compiled for this machine: {difference}; publish it again on this machine, or serve it on"
            " another"
        )


def _compute_in_batches(engine: Engine, kind: Kind, *columns: np.ndarray) -> np.ndarray:
    rows = np.concatenate(columns, axis=1)
    starts = range(0, len(rows), engine.max_rows)
    return np.concatenate([engine.compute(kind, rows[start : start + engine.max_rows]) for start in starts])


class CompilationCounter:
    """Counts JAX's compilations between `start` and `stop`, except those of versions loaded in the background."""

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
        if event == _COMPILE_EVENT and threading.current_thread().name != BACKGROUND:
            self._counter.inc()
