"""Connections to the server's port, and the file descriptors that they need: limit, warning and metric.

Some descriptors are reserved, so that a server with too many connections can still answer scrapes and read files.
"""

import logging
import re
import resource
from collections.abc import Callable, Iterable
from pathlib import Path

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_LOGGER = logging.getLogger(__name__)
_RESERVED = 48  # descriptors that connections may not use
_WARN_EVERY_S = 60.0
_UNLIMITED = 2**31 - 1  # the largest number of connections that gRPC takes
_ESTABLISHED = "01"  # in the kernel's table


def max_connections() -> int:
    """Return how many connections the process may accept, by its limit of descriptors and those in use; at least 1."""
    return max(_limit() - _used() - _RESERVED, 1)


class DescriptorWatch:
    """Warns when connections have used up their descriptors, at most once a minute.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._warned_s: float | None = None

    def check(self, used: int | None = None, limit: int | None = None) -> None:
        """Warn if connections have used up their descriptors.

        Args:
            used: descriptors in use; None: those of this process.
            limit: how many there may be; None: that of this process.
        """
        used = _used() if used is None else used
        limit = _limit() if limit is None else limit
        now_s = self._clock()
        if used < limit - _RESERVED or (self._warned_s is not None and now_s - self._warned_s < _WARN_EVERY_S):
            return
        self._warned_s = now_s
        _LOGGER.warning(
            "%d of %d file descriptors are in use, so further connections are refused; allow more with ulimit -n, or"
            " close connections that are not needed",
            used,
            limit,
        )


class ConnectionsCollector(Collector):
    """The number of open connections to a port, from the kernel's table.

    Args:
        port: the local port.
        tables: the kernel's tables, as /proc/net/tcp; one that does not exist counts as empty.
    """

    def __init__(self, port: int, *, tables: Iterable[Path] = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))) -> None:
        self._line = re.compile(rf"\s*\d+: [0-9A-F]+:{port:04X} [0-9A-F]+:[0-9A-F]+ {_ESTABLISHED} ")
        self._tables = tuple(tables)

    def collect(self) -> Iterable[Metric]:
        """Return one sample."""
        found = sum(self._count(table) for table in self._tables)
        return (GaugeMetricFamily("kilolayer_connections", "Open connections to the gRPC port.", value=found),)

    def _count(self, table: Path) -> int:
        if not table.exists():
            return 0
        with table.open() as lines:
            return sum(self._line.match(line) is not None for line in lines)


def _used() -> int:
    """Return the number of descriptors that this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir()) - 1  # without that of the folder itself


def _limit() -> int:
    """Return how many descriptors this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _UNLIMITED if soft == resource.RLIM_INFINITY else min(soft, _UNLIMITED)
