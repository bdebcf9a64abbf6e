"""load: loads the policies of a server, and makes the server."""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax
from prometheus_client import CollectorRegistry, ProcessCollector

from serving.config import ServeConfig
from serving.engine.thread_priority import run_in_thread
from serving.errors import StartupError
from serving.policies import store
from serving.policies.episode_reports import EpisodeReports, ReportSink
from serving.policies.report_metrics import ReportsCollector
from serving.policies.restart import first_choices
from serving.policies.source import PolicySource, resolve
from serving.server import Server
from serving.telemetry.metrics import DeviceMemoryCollector, Metrics

if TYPE_CHECKING:
    from serving.api.tracing import Tracing


async def load(
    config: ServeConfig,
    *,
    collectors: CollectorRegistry | None = None,
    tracing: "Tracing | None" = None,
    reports: ReportSink | None = None,
    sources: Sequence[PolicySource] | None = None,
    choices: Sequence[Sequence[int]] | None = None,
    on_rejected: Callable[[str], None] | None = None,
) -> Server:
    """Load and verify the policies that `config` names.

    Args:
        collectors: what the metrics are registered with; None: a new one, with the process's and its devices' metrics.
        tracing: makes a span of every call; None: as `config` says.
        reports: takes the reports of robots; None: this process counts them.
        sources: the policies; None: those of `config`.
        choices: the versions of each policy to try, the most wanted first; None: as `sources` say.
        on_rejected: called with the reason for every version that fails a check; None: the metrics count it.

    Raises:
        StartupError: a path has no usable policy, or OpenTelemetry is wanted and not installed.
    """
    collectors = collectors or process_collectors()
    metrics = Metrics(collectors)
    metrics.describe_build(device=jax.default_backend())
    if reports is None:
        reports = EpisodeReports()
        collectors.register(ReportsCollector(reports))
    if config.tracing and tracing is None:
        tracing = _tracing()
    sources = sources or await run_in_thread(resolve, config)
    choices = choices or await run_in_thread(lambda: [first_choices(source) for source in sources])
    # In a thread: reading takes seconds, and signals are handled meanwhile.
    load_all = functools.partial(
        store.load_all,
        sources,
        choices,
        on_rejected=on_rejected or metrics.count_rejected_bundle,
        strict=config.strict,
    )
    bundles = await run_in_thread(load_all)
    return Server(
        config,
        sources=sources,
        bundles=bundles,
        metrics=metrics,
        collectors=collectors,
        reports=reports,
        tracing=tracing,
    )


def process_collectors() -> CollectorRegistry:
    """Return a registry with the metrics of this process and of its devices."""
    collectors = CollectorRegistry()
    ProcessCollector(registry=collectors)
    collectors.register(DeviceMemoryCollector(jax.local_devices()))
    return collectors


def _tracing() -> "Tracing":
    try:
        from serving.api.tracing import otlp
    except ImportError as error:
        raise StartupError(
            "--tracing needs the extra `tracing`: pip install -e '.[tracing]'; or leave out --tracing"
        ) from error
    return otlp()
