"""TrialsCollector: the canaries of a server as metrics. Decided in one process, also if there are several workers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.policies.sequential_test import Verdict
from serving.policies.status import PolicyStatus


class DecidedTrials(Protocol):
    """The part of a `serving.policies.deployment.Deployment` that is used here."""

    def status(self) -> Sequence[PolicyStatus]:
        """Return what is decided about every policy."""
        ...

    def verdicts(self) -> Mapping[tuple[str, Verdict], int]:
        """Return how many canaries of each policy ended by a verdict."""
        ...


class TrialsCollector(Collector):
    """The canaries now, and how earlier ones ended by themselves. Collects in any thread."""

    def __init__(self, trials: DecidedTrials) -> None:
        self._trials = trials

    def collect(self) -> Iterable[Metric]:
        """Return the present numbers."""
        share = GaugeMetricFamily(
            "kilolayer_canary_share", "Share of the robots that get a candidate.", labels=("policy", "version")
        )
        for status in self._trials.status():
            if status.canary and not status.canary.loading:
                share.add_metric((status.policy, str(status.canary.version)), status.canary.share)
        verdicts = CounterMetricFamily(
            "kilolayer_canary_verdicts", "Canaries that ended by reports.", labels=("policy", "verdict")
        )
        for (policy, verdict), number in self._trials.verdicts().items():
            verdicts.add_metric((policy, verdict), number)
        return share, verdicts
