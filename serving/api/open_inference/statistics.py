"""StatisticsByVersion: outcomes and durations of this protocol's requests, by model and version, for ModelStatistics.

Durations are those of requests: a request that shared a batch counts the whole computation of the batch, because its
caller waited for it. Rows and batches are those of the policy, because other methods, such as Act, share its batches.
"""

import dataclasses
import time
from collections.abc import Callable

from prometheus_client import Counter

from serving.api.open_inference import open_inference_pb2 as pb
from serving.policies.registry import ServedPolicy
from serving.telemetry.metrics import Metrics


@dataclasses.dataclass(slots=True)
class Duration:
    """How often something happened, and how long it took in total."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        """Count one more."""
        self.count += 1
        self.ns += round(seconds * 1e9)

    def encode(self) -> pb.StatisticDuration:
        """Return the message of the protocol."""
        return pb.StatisticDuration(count=self.count, ns=self.ns)


class VersionStatistics:
    """The statistics of one version of a model.

    Args:
        wall_clock: seconds since 1970.
    """

    def __init__(self, wall_clock: Callable[[], float]) -> None:
        self._wall_clock = wall_clock
        self._last_inference_s = 0.0
        self._success, self._fail, self._queue = Duration(), Duration(), Duration()
        self._input, self._infer, self._output = Duration(), Duration(), Duration()

    def succeeded(self, total_s: float, *, input_s: float, queue_s: float, infer_s: float, output_s: float) -> None:
        """Count a request that was answered `total_s` after it arrived, and how long each step took."""
        self._success.add(total_s)
        self._queue.add(queue_s)
        self._input.add(input_s)
        self._infer.add(infer_s)
        self._output.add(output_s)
        self._last_inference_s = self._wall_clock()

    def failed(self, total_s: float) -> None:
        """Count a request that failed `total_s` after it arrived."""
        self._fail.add(total_s)

    def encode(self, served: ServedPolicy, *, rows: int, batches: int) -> pb.ModelStatistics:
        """Return the message of the protocol."""
        return pb.ModelStatistics(
            name=served.name,
            version=served.version,
            last_inference=round(self._last_inference_s * 1e3),
            inference_count=rows,
            execution_count=batches,
            inference_stats=pb.InferStatistics(
                success=self._success.encode(),
                fail=self._fail.encode(),
                queue=self._queue.encode(),
                compute_input=self._input.encode(),
                compute_infer=self._infer.encode(),
                compute_output=self._output.encode(),
            ),
        )


class StatisticsByVersion:
    """The statistics of every version that got a request.

    Args:
        metrics: count the rows and batches of each policy.
        wall_clock: seconds since 1970.
    """

    def __init__(self, metrics: Metrics, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._metrics = metrics
        self._wall_clock = wall_clock
        self._statistics: dict[tuple[str, str], VersionStatistics] = {}

    def of(self, served: ServedPolicy) -> VersionStatistics:
        """Return the statistics of the version in `served`."""
        key = served.name, served.version
        statistics = self._statistics.get(key)
        if statistics is None:
            statistics = self._statistics[key] = VersionStatistics(self._wall_clock)
        return statistics

    def encode(self, served: ServedPolicy) -> pb.ModelStatistics:
        """Return the message of the protocol for the version in `served`."""
        name = served.name
        rows, batches = _total(self._metrics.rows.labels(name)), _total(self._metrics.batches.labels(name))
        return self.of(served).encode(served, rows=rows, batches=batches)


def _total(counter: Counter) -> int:
    """Return the value of `counter`, which has its labels."""
    samples = [sample for family in counter.collect() for sample in family.samples]
    return next(int(sample.value) for sample in samples if sample.name.endswith("_total"))
