"""ServeConfig: everything that a server is told when it starts, complete and checked when constructed."""

import dataclasses
import math
from pathlib import Path

_LARGEST_PORT = 65535
_MOST_ROWS = 65536  # an executable is compiled for every power of two up to the cap


class ConfigError(Exception):
    """A configuration that cannot be met; the message names the field and a value that works."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Serve published policies over gRPC: Act, Describe and List, with health checks and Prometheus metrics.

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
    """Whether to offer Prometheus metrics over HTTP."""

    metrics_port: int = 9464
    """Port for the metrics. 0: any free one; the ready line in the log names it."""

    max_rows: int = 256
    """Most rows that one call may hold, and most that are computed together; a power of two. Start-up time grows with
    its logarithm."""

    max_queue_rows: int = 1024
    """Most rows per policy that may wait for computation; calls beyond it are shed with RESOURCE_EXHAUSTED."""

    grace_s: float = 10.0
    """Seconds that accepted calls have to be answered after SIGTERM."""

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
        if not 1 <= self.max_rows <= _MOST_ROWS or self.max_rows & (self.max_rows - 1):
            raise ConfigError(
                f"max_rows must be a power of two from 1 to {_MOST_ROWS}, such as 256, not {self.max_rows}"
            )
        if self.max_queue_rows < self.max_rows:
            raise ConfigError(f"max_queue_rows must be at least max_rows, {self.max_rows}, not {self.max_queue_rows}")
        if not (math.isfinite(self.grace_s) and self.grace_s > 0):
            raise ConfigError(f"grace_s must be a positive number of seconds, such as 10, not {self.grace_s}")
