"""ReportsCollector: the reports of episodes as metrics. Counted in one process, also if there are several workers."""

from collections.abc import Iterable

from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.policies.episode_reports import EpisodeReports

_OF_VERSION = ("policy", "version")


class ReportsCollector(Collector):
    """How episodes ended, by version, and how many reports did not count. Collects in any thread.

    The number of series is bounded, as are the counts of `reports`.
    """

    def __init__(self, reports: EpisodeReports) -> None:
        self._reports = reports

    def collect(self) -> Iterable[Metric]:
        """Return the present numbers."""
        reports = CounterMetricFamily("kilolayer_reports", "Reports of episodes.", labels=("policy", "status"))
        for (policy, status), number in self._reports.statuses().items():
            reports.add_metric((policy, status), number)
        episodes = CounterMetricFamily("kilolayer_episodes", "Episodes that were reported.", labels=_OF_VERSION)
        reached = CounterMetricFamily(
            "kilolayer_episodes_reached", "Episodes that were reported and ended at the goal.", labels=_OF_VERSION
        )
        at_goal = CounterMetricFamily(
            "kilolayer_episodes_time_at_goal", "Control periods at the goal, of those episodes.", labels=_OF_VERSION
        )
        for (policy, version), counts in self._reports.counts().items():
            for family, number in zip((episodes, reached, at_goal), counts, strict=True):
                family.add_metric((policy, str(version)), number)
        return reports, episodes, reached, at_goal
