"""Prometheus metrics of the server. The set of labels is bounded.

Names that clients send never become labels: a policy that is not served is counted as UNKNOWN_POLICY.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Literal, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, ProcessCollector
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from serving.errors import REJECTION_REASONS
from serving.telemetry import info

if TYPE_CHECKING:
    from policy.spec import PolicySpec  # it imports JAX, which the supervisor does not need

MULTIPROCESS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that makes prometheus_client write metrics into files, which the supervisor sums up."""
UNKNOWN_POLICY = "(unknown)"  # a policy's name has no brackets
NO_POLICY = "(none)"  # for methods that are not about one policy
UNREAD_POLICY = "(unread)"  # for calls that are rejected before they are read
# An action lies in [-1, 1], so two of them differ by at most 2.
_DISTANCES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
# Control loops run at 10 to 1000 Hz, so 0.1 ms to 1 s.
_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


class Metrics:
    """Every metric of one server, registered with `collectors`."""

    def __init__(self, collectors: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"kilolayer_{name}", text, labels, registry=collectors)

        def gauge(name: str, text: str, *labels: str, of_workers: Literal["livesum", "livemin"]) -> Gauge:
            return Gauge(f"kilolayer_{name}", text, labels, registry=collectors, multiprocess_mode=of_workers)

        def seconds(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(f"kilolayer_{name}_seconds", text, labels, registry=collectors, buckets=_SECONDS)

        self.requests = counter("requests", "Calls, and requests of streams, by outcome.", "method", "policy", "code")
        self.rows = counter("rows", "Rows computed, padding excluded.", "policy")
        self.batches = counter("batches", "Batches computed; rows / batches is the mean batch size.", "policy")
        self.padding_rows = counter("padding_rows", "Rows computed only to fill up a compiled batch size.", "policy")
        self.failed_batches = counter("failed_batches", "Batches whose computation failed.", "policy")
        self.non_finite = counter("non_finite", "Requests in range whose results were NaN or infinite.", "policy")
        self.extreme_input = counter(
            "extreme_input", "Requests out of range whose results were NaN or infinite.", "policy"
        )
        self.out_of_range = counter(
            "out_of_range", "Requests with a state out of the range that training saw, flagged or refused.", "policy"
        )
        self.log_rows = counter("log_rows", "Answered rows that were sampled and written into a file.", "policy")
        self.dropped_log_rows = counter(
            "dropped_log_rows", "Answered rows that were sampled and not written, by reason.", "reason"
        )
        self.rejected = counter("rejected", "Requests rejected for load, by reason.", "policy", "reason")
        self.refused = counter("refused", "Calls refused because of who calls, by cause.", "reason")
        self.http_refused = counter(
            "http_refused", "HTTP requests and connections that were refused for a reason of HTTP.", "reason"
        )
        self.tls_failures = counter("tls_failures", "TLS handshakes that failed, by reason.", "reason")
        self.memory_limit = counter("memory_limit", "Calls ended because their connection held too many bytes.")
        self.held_bytes = gauge(
            "held_bytes", "Requests under way and replies that are not sent yet.", of_workers="livesum"
        )
        self.queue_rows = gauge("queue_rows", "Rows waiting for computation.", "policy", of_workers="livesum")
        self.queue_seconds = seconds("queue", "From a request's admission to the start of its computation.", "policy")
        self.compute_seconds = seconds("compute", "Computation of one batch.", "policy")
        self.total_seconds = seconds("total", "From a request's arrival to its outcome.", "method", "policy")
        self.live_version = gauge(
            "live_version", "Version that is served, a training step.", "policy", of_workers="livemin"
        )
        self.policy_info = gauge(
            "policy_info",
            "What a policy is, by its live version; always 1.",
            *info.POLICY_LABELS,
            of_workers="livemin",
        )
        self.build_info = gauge(
            "build_info", "Which release serves; always 1.", *info.BUILD_LABELS, of_workers="livemin"
        )
        self.dropped_log_lines = counter("dropped_log_lines", "Lines of the log that were not written.")
        self.bundles_rejected = rejected_bundles(collectors)
        self.compilations = counter("compilations_after_ready", "Compilations while serving; must stay 0.")
        self.shadow_rows = counter(
            "shadow_rows", "Rows that were sampled for a shadow, by what became of them.", "policy", "outcome"
        )
        self.shadow_distance = Histogram(
            "kilolayer_shadow_distance",
            "Largest difference between an action of the shadow and the live one, by row.",
            ("policy",),
            registry=collectors,
            buckets=_DISTANCES,
        )
        self._live_labels: dict[str, dict[str, str]] = {}  # of policy_info, by policy
        self._rejected_unread: dict[str, Counter] = {
            reason: self.rejected.labels(UNREAD_POLICY, reason) for reason in REJECTION_REASONS
        }
        self._outcomes: dict[tuple[str, str, str], tuple[Counter, Histogram]] = {}

    def observe_request(self, method: str, policy: str, *, code: str, total_s: float) -> None:
        """Count one call, or one request of a stream, that ended with the gRPC status `code`."""
        outcome = self._outcomes.get((method, policy, code))
        if outcome is None:  # the library's lookup of labels takes longer than counting
            outcome = self.requests.labels(method, policy, code), self.total_seconds.labels(method, policy)
            self._outcomes[method, policy, code] = outcome
        outcome[0].inc()
        outcome[1].observe(total_s)

    def count_rejected_unread(self, reason: str) -> None:
        """Count one call that was rejected, before it was read, for one of `REJECTION_REASONS`."""
        self._rejected_unread[reason].inc()

    def count_tls_failures(self, failures: Mapping[str, int]) -> None:
        """Count TLS handshakes that failed, by one of `serving.access.handshakes.REASONS`."""
        for reason, count in failures.items():
            self.tls_failures.labels(reason).inc(count)

    def count_rejected_bundle(self, reason: str) -> None:
        """Count one version on disk that failed a check."""
        self.bundles_rejected.labels(reason).inc()

    def describe_build(self, *, device: str) -> None:
        """Show which release serves, and on what, such as cpu."""
        self.build_info.labels(**info.build_labels(device=device)).set(1)

    def show_live(self, spec: "PolicySpec", *, version: int) -> None:
        """Show which version of a policy is live, and what it is; the one that was live before is not any more."""
        labels = info.policy_labels(spec, version)
        if before := self._live_labels.get(spec.name):
            self.policy_info.labels(**before).set(0)  # a worker's file keeps it, and the supervisor leaves it out
            if MULTIPROCESS_FOLDER not in os.environ:
                self.policy_info.remove(*(before[name] for name in info.POLICY_LABELS))
        self._live_labels[spec.name] = labels
        self.policy_info.labels(**labels).set(1)
        self.live_version.labels(spec.name).set(version)

    def for_policy(self, policy: str) -> "PolicyMetrics":
        """Return the metrics of one served policy."""
        return PolicyMetrics(self, policy)


class PolicyMetrics:
    """The metrics of one policy, for one batcher of it. Each version has a batcher, and their numbers add up."""

    def __init__(self, metrics: Metrics, policy: str) -> None:
        self._rows = metrics.rows.labels(policy)
        self._batches = metrics.batches.labels(policy)
        self._padding_rows = metrics.padding_rows.labels(policy)
        self._queue_seconds = metrics.queue_seconds.labels(policy)
        self._compute_seconds = metrics.compute_seconds.labels(policy)
        self._rejected: dict[str, Counter] = {
            reason: metrics.rejected.labels(policy, reason) for reason in REJECTION_REASONS
        }
        self._all_queue_rows = metrics.queue_rows.labels(policy)
        self._queue_rows = 0  # of this batcher
        self.failed_batches = metrics.failed_batches.labels(policy)
        self.non_finite = metrics.non_finite.labels(policy)
        self.extreme_input = metrics.extreme_input.labels(policy)

    def observe_batch(self, rows: int, *, padding: int, compute_s: float) -> None:
        """Count one batch that was computed."""
        self._rows.inc(rows)
        self._batches.inc()
        self._padding_rows.inc(padding)
        self._compute_seconds.observe(compute_s)

    def show_queue_rows(self, rows: int) -> None:
        """Show how many rows wait in the batcher's queue now."""
        if rows != self._queue_rows:
            self._all_queue_rows.inc(rows - self._queue_rows)
            self._queue_rows = rows

    def count_rejected(self, reason: str) -> None:
        """Count one request that was rejected for one of `REJECTION_REASONS`."""
        self._rejected[reason].inc()

    def observe_queue(self, queue_s: float) -> None:
        """Record how long one request waited in the queue."""
        self._queue_seconds.observe(queue_s)


class ShadowMetrics:
    """The metrics of the shadows of one policy."""

    def __init__(self, metrics: Metrics, policy: str) -> None:
        self._compared, self._dropped, self._failed = (
            metrics.shadow_rows.labels(policy, outcome) for outcome in ("compared", "dropped", "failed")
        )
        self._distance = metrics.shadow_distance.labels(policy)

    def observe(self, distances: Iterable[float]) -> None:
        """Record the largest difference between both actions of each row that was compared."""
        for distance in distances:
            self._distance.observe(distance)
            self._compared.inc()

    def count_dropped(self, rows: int) -> None:
        """Count rows that were not compared, because there was no time."""
        self._dropped.inc(rows)

    def count_failed(self, rows: int) -> None:
        """Count rows for which the shadow gave no finite action."""
        self._failed.inc(rows)


def admin_actions(collectors: CollectorRegistry) -> Counter:
    """Return the counter of what operators ask for. One process of a server has it: with workers, the supervisor."""
    text = "Actions and queries of operators, by outcome: ok, stopped, or the reason of the failure."
    return Counter("kilolayer_admin_actions", text, ("action", "outcome"), registry=collectors)


def rejected_bundles(collectors: CollectorRegistry) -> Counter:
    """Return the counter of versions that failed a check. With workers, the supervisor counts, and no worker does."""
    text = "Versions on disk that failed a check."
    return Counter("kilolayer_bundles_rejected", text, ("reason",), registry=collectors)


class ProcessesCollector(Collector):
    """Memory, processor time and descriptors of several processes, summed.

    Args:
        pids: the processes that run now; one that has just ended adds nothing.
    """

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        self._pids = pids

    def collect(self) -> Iterable[Metric]:
        """Return the sums; the start time is that of the first process."""
        summed: dict[str, Metric] = {}
        for pid in self._pids():
            for metric in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():
                first = summed.setdefault(metric.name, metric)
                if first is not metric and metric.name != "process_start_time_seconds":
                    value = first.samples[0].value + metric.samples[0].value
                    first.samples[0] = first.samples[0]._replace(value=value)
        return summed.values()


class Device(Protocol):
    """The part of a jax.Device that is used here."""

    id: int

    def memory_stats(self) -> dict[str, int] | None:
        """Bytes by name; None: the device does not report its memory, as CPUs do not."""
        ...


class DeviceMemoryCollector(Collector):
    """The memory of those `devices` that report it."""

    def __init__(self, devices: Iterable[Device]) -> None:
        self._devices = tuple(devices)

    def collect(self) -> Iterable[Metric]:
        """Return one sample for each device and memory state."""
        text = "Memory of a device: in_use now, at its peak, and its limit."
        family = GaugeMetricFamily("kilolayer_device_memory_bytes", text, labels=("device", "state"))
        for device in self._devices:
            stats = device.memory_stats() or {}
            for state, name in (("in_use", "bytes_in_use"), ("peak", "peak_bytes_in_use"), ("limit", "bytes_limit")):
                if name in stats:
                    family.add_metric((str(device.id), state), stats[name])
        return (family,)
