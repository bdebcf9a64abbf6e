"""ServeConfig: everything that a server is told when it starts, complete and checked when constructed."""

import dataclasses
import math
from pathlib import Path
from typing import Literal

LogFormat = Literal["auto", "json", "text"]
_LARGEST_PORT = 65535
_MOST_WORKERS = 256
_MOST_ROWS = 65536  # an executable is compiled for every power of two up to the cap


class ConfigError(Exception):
    """A configuration that cannot be met; the message names the field and a value that works."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Serve published policies over gRPC: Act, ActStream, Score, Describe and List, with health and Prometheus metrics.

    The newest version of each policy that verifies is loaded and compiled for every batch size before health says
    SERVING. SIGTERM or SIGINT refuses new calls, answers the accepted ones, and exits with 0.

    Every flag can be given as an environment variable instead, KILOLAYER_ before its name in capitals
    (KILOLAYER_PORT=50052, KILOLAYER_METRICS=false; folders in KILOLAYER_POLICIES are separated as in PATH). A flag
    beats its variable.

    Raises:
        ConfigError: a field is out of range, or does not fit the others.
    """

    policies: tuple[Path, ...] = ()
    """Folders of published policies, as training writes them (runs/<run>/policies). Each holds the versions of one
    policy. At least one is needed."""

    default_policy: str = ""
    """Name of the policy that answers calls which name none. Empty: that of the first folder."""

    host: str = "127.0.0.1"
    """Address to listen on, for calls and for metrics. Nothing is encrypted or authenticated, so the default can be
    reached from this machine only; 0.0.0.0 listens on every IPv4 interface, as a container needs."""

    port: int = 50051
    """Port for gRPC. 0: any free one; the ready line in the log names it."""

    metrics: bool = True
    """Whether to served Prometheus metrics over HTTP."""

    metrics_port: int = 9464
    """Port for the metrics. 0: any free one; the ready line in the log names it."""

    max_batch_rows: int = 256
    """Most rows that are computed together; a power of two, and on a CPU no more than 1024. 1 switches batching off.
    Start-up time grows with its logarithm."""

    max_call_rows: int = 4096
    """Most rows that one call may hold, candidates of best-of counted. A call of more rows than a batch is computed in
    several."""

    max_queue_rows: int = 8192
    """Most rows per policy that may wait for computation; calls beyond it are shed with RESOURCE_EXHAUSTED."""

    max_queue_age_s: float = 1.0
    """Calls are shed while one has waited longer than this, in seconds, without its computation having begun."""

    max_batch_delay_s: float = 0.002
    """Longest that a batch which is not full waits for company, in seconds; 0: never. Nobody waits while computation
    and event loop are both idle half of the time."""

    grace_s: float = 10.0
    """Seconds that accepted calls have to be answered after SIGTERM."""

    workers: int = 1
    """Processes that share the port and the cores, each with the policies compiled for itself. More than one is for
    many small calls on CPUs: one process spends about a core on receiving and sending."""

    tracing: bool = False
    """Whether to make an OpenTelemetry span of every call (extra `tracing`), sent by OTLP over gRPC. Where to, and
    which are kept, is told by OpenTelemetry's own variables, such as OTEL_EXPORTER_OTLP_ENDPOINT."""

    log_format: LogFormat = "auto"
    """Of the lines on stderr: one JSON object each, or text; auto is text on a terminal and JSON anywhere else."""

    def __post_init__(self) -> None:
        if not self.policies:
            raise ConfigError("policies must name at least one folder, such as runs/demo/policies")
        if not self.host:
            raise ConfigError("host must not be empty; 127.0.0.1 serves this machine only, 0.0.0.0 every interface")
        for field in ("port", "metrics_port"):
            port = getattr(self, field)
            if not 0 <= port <= _LARGEST_PORT:
                raise ConfigError(f"{field} must be 0 (any free one) to {_LARGEST_PORT}, not {port}")
        if self.metrics and self.port == self.metrics_port != 0:
            raise ConfigError(f"metrics_port must differ from port, {self.port}; 0 picks a free one")
        if not 1 <= self.workers <= _MOST_WORKERS:
            raise ConfigError(f"workers must be 1 to {_MOST_WORKERS}, at most one for every core, not {self.workers}")
        rows = self.max_batch_rows
        if not 1 <= rows <= _MOST_ROWS or rows & (rows - 1):
            raise ConfigError(f"max_batch_rows must be a power of two from 1 to {_MOST_ROWS}, such as 256, not {rows}")
        if not 1 <= self.max_call_rows <= _MOST_ROWS:
            raise ConfigError(f"max_call_rows must be 1 to {_MOST_ROWS}, such as 4096, not {self.max_call_rows}")
        if self.max_queue_rows < self.max_call_rows:
            raise ConfigError(
                f"max_queue_rows must be at least max_call_rows, {self.max_call_rows}, not {self.max_queue_rows}"
            )
        for field, example in (("grace_s", "10"), ("max_queue_age_s", "1")):
            seconds = getattr(self, field)
            if not (math.isfinite(seconds) and seconds > 0):
                raise ConfigError(f"{field} must be a positive number of seconds, such as {example}, not {seconds}")
        if not 0 <= self.max_batch_delay_s <= 1:
            raise ConfigError(f"max_batch_delay_s must be 0 to 1 second, such as 0.001, not {self.max_batch_delay_s}")
