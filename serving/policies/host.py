"""PolicyHost: the versions of policies that one process has loaded, and how one is loaded, made live and unloaded.

Which versions are served is decided elsewhere (`serving.policies.deployment`); this carries it out. A version is read,
verified and compiled in a thread of the lowest priority, while the others answer. It becomes live in one step on the
event loop. A request that was admitted before is still answered by the version that it was admitted to.
"""

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence

from policy.bundle import Bundle
from serving.batching.batcher import Batcher
from serving.batching.scheduler import BatchingPolicy
from serving.config import ServeConfig
from serving.engine.engine import Engine
from serving.engine.thread_priority import run_in_background, short_turns
from serving.errors import ProbeError, RefusedVersionError
from serving.policies import store
from serving.policies.canary import CanaryShare
from serving.policies.compilation import PolicyCompiler
from serving.policies.registry import PolicyRegistry, ServedPolicy
from serving.policies.seen_range import SeenRange
from serving.policies.shadow import Shadow
from serving.policies.source import PolicySource
from serving.telemetry.metrics import Metrics, ShadowMetrics

_LOGGER = logging.getLogger(__name__)


class PolicyHost:
    """The loaded versions of every policy. Construct it inside a running event loop.

    At the start, call `compile_first`, perhaps `compile_rest`, then `open`; after that, the other methods.

    Args:
        sources: the policies.
        bundles: the verified versions that are live at first, by policy.
        registry: finds a version for a request.
        config: the settings that all policies share.
        metrics: of the process.
        clock: monotonic seconds.
        on_broken: called with a policy and the cause, once or several times, if it cannot be computed any more.

    Raises:
        StartupError: a policy's device does not exist.
    """

    def __init__(
        self,
        sources: Sequence[PolicySource],
        bundles: Mapping[str, Bundle],
        registry: PolicyRegistry,
        *,
        config: ServeConfig,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        on_broken: Callable[[str, str], None],
    ) -> None:
        self._registry = registry
        self._config = config
        self._metrics = metrics
        self._clock = clock
        self._on_broken = on_broken
        self._sources = {source.name: source for source in sources}
        self._first = [
            PolicyCompiler(
                bundle,
                max_batch_rows=self._sources[name].max_batch_rows,
                device=self._sources[name].device,
                clock=clock,
            )
            for name, bundle in bundles.items()
        ]
        self._to_compile = list(self._first)
        self._engines: dict[tuple[str, int], Engine] = {}  # of the loaded versions
        self._unloading: set[asyncio.Task[bool]] = set()
        self._loading = asyncio.Lock()  # one version at a time

    async def compile_first(self) -> None:
        """Compile batches of one row of every policy, and check the policies' probes.

        Raises:
            ProbeError: a compiled policy does not give the actions that were stored with it.
        """
        for compiler in self._first:
            await compiler.compile_first()

    async def compile_rest(self) -> None:
        """Compile the other batch sizes, the largest first. No effect if they are compiled.

        Raises:
            ProbeError: as `compile_first`.
        """
        async with self._loading:
            compilers, self._to_compile = self._to_compile, []
            for compiler in compilers:
                await compiler.compile_largest()
            for compiler in compilers:
                await compiler.compile_rest()

    def open(self) -> None:
        """Answer requests with the versions that are live at first."""
        first, self._first = self._first, []  # kept here, they would keep their memory after they are unloaded
        self._registry.open(map(self._serve, first))
        for compiler in first:
            self._metrics.show_live(compiler.bundle.spec, version=compiler.bundle.version)

    async def prepare(self, policy: str, version: int) -> None:
        """Load a version, so that requests that name it are answered. No effect if it is loaded.

        Raises:
            RefusedVersionError: it must not be served.
            StartupError: the machine lacks a resource that loading needs.
        """
        if (policy, version) in self._engines:
            return
        try:
            await run_in_background(self._sources[policy].fetch, version)  # other versions are loaded meanwhile
            async with self._loading:
                if (policy, version) not in self._engines:
                    with short_turns():
                        await self._load(policy, version)
        except RefusedVersionError as error:
            if self._config.workers == 1:  # otherwise the supervisor counts it, once for all workers
                self._metrics.count_rejected_bundle(error.reason)
            raise

    async def switch(self, policy: str, version: int) -> None:
        """Make a loaded version live, in one step between two batches."""
        self._registry.switch(policy, str(version))
        self._metrics.show_live(self._registry.live()[policy].bundle.spec, version=version)

    async def set_canary(self, policy: str, version: int, *, share: float) -> None:
        """Answer a share of the robots with a loaded version; with a share of 0, all of them with the live one."""
        canary = CanaryShare(policy=policy, candidate=version, share=share) if share else None
        self._registry.set_canary(policy, canary)

    async def set_shadow(self, policy: str, version: int, *, share: float) -> None:
        """Compare a share of the live version's rows with a loaded version; with a share of 0, none of them."""
        self._registry.set_shadow(policy, self._shadow(policy, version, share) if share else None)

    async def unload(self, policy: str, version: int) -> None:
        """Answer no more requests that name this version, and free its memory. No effect if it is not loaded.

        It must be neither live nor the version of a canary or a shadow. Requests that it has admitted are answered
        first, also if the caller of this method is cancelled.
        """
        if (policy, version) not in self._engines:
            return
        served = self._registry.remove(policy, str(version))
        del self._engines[policy, version]
        unloading = asyncio.create_task(served.batcher.drain(grace_s=self._config.grace_s))
        self._unloading.add(unloading)
        unloading.add_done_callback(self._unloading.discard)
        await asyncio.shield(unloading)

    async def drain(self, *, grace_s: float) -> bool:
        """Answer every admitted request, and stop. After `grace_s`, fail the rest. Return whether none failed."""
        draining = [served.batcher.drain(grace_s=grace_s) for served in self._registry.all_loaded()]
        return all(await asyncio.gather(self._are_unloaded(grace_s), *draining))

    async def _are_unloaded(self, timeout_s: float) -> bool:
        """Wait for the versions that are being unloaded. Return whether all have answered their requests in time."""
        if not self._unloading:
            return True
        done, late = await asyncio.wait(self._unloading, timeout=timeout_s)
        return not late and all(unloaded.result() for unloaded in done)

    async def _load(self, policy: str, version: int) -> None:
        live = self._registry.live()[policy].bundle
        source = self._sources[policy]
        started_s = self._clock()
        bundle = await run_in_background(functools.partial(store.read, source, version))
        read_s = self._clock() - started_s
        if difference := live.spec.interface_difference(bundle.spec):
            problem = f"does not fit the robots that version {live.version} serves: {difference}"
            raise RefusedVersionError("interface", f"{bundle.path} {problem}", detail=f"it {problem}")
        compiler = PolicyCompiler(
            bundle,
            max_batch_rows=source.max_batch_rows,
            device=source.device,
            like=self._engines[policy, live.version],
            read_s=read_s,
            run=run_in_background,
            clock=self._clock,
        )
        try:
            await compiler.compile_all()
        except ProbeError as error:
            detail = str(error).removeprefix(f"{bundle.path}, ")
            raise RefusedVersionError("probes", str(error), detail=detail) from error
        self._registry.add(self._serve(compiler))

    def _shadow(self, policy: str, version: int, share: float) -> Shadow:
        return Shadow(
            self._engines[policy, version],
            name=f"{policy}@{version}",
            share=share,
            is_busy=lambda: self._registry.live()[policy].batcher.queue_rows > 0,
            metrics=ShadowMetrics(self._metrics, policy),
        )

    def _serve(self, compiled: PolicyCompiler) -> ServedPolicy:
        """Return a version that can answer requests."""
        bundle, engine = compiled.bundle, compiled.engine
        config, name = self._config, bundle.spec.name
        source = self._sources[name]
        self._engines[name, bundle.version] = engine
        seen_range = SeenRange(bundle.spec)
        batcher = Batcher(
            engine,
            policy=BatchingPolicy(
                max_queue_rows=source.max_queue_rows,
                max_queue_age_s=config.max_queue_age_s,
                max_batch_delay_s=source.max_batch_delay_s,
            ),
            metrics=self._metrics.for_policy(name),
            clock=self._clock,
            max_compute_s=config.max_compute_s,
            on_broken=functools.partial(self._on_broken, name),
            explains=seen_range.explains,
        )
        return ServedPolicy(bundle, batcher, seen_range)
