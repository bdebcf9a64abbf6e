"""Connections to the server, and the file descriptors that they need: limit, warning and metric.

Some descriptors are reserved, so that a server with too many connections can still answer scrapes and read files.
"""

import errno
import logging
import re
import resource
from collections.abc import Callable, Iterable
from pathlib import Path

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.sockets import Address, TcpAddress

_LOGGER = logging.getLogger(__name__)
_RESERVED = 48  # descriptors that connections may not use
_WARN_EVERY_S = 60.0
_UNLIMITED = 2**31 - 1  # the largest number of connections that gRPC takes
_ESTABLISHED, _CONNECTED = "01", "03"  # in the kernel's tables of TCP and of Unix sockets


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
    """The number of open connections to an address, from the kernel's tables.

    Args:
        address: of the server.
        protocol: that is spoken there; empty: gRPC.
        folder: of the kernel's tables; one that does not exist counts as empty.
    """

    def __init__(self, address: Address, *, protocol: str = "", folder: Path = Path("/proc/net")) -> None:
        prefix = f"{protocol}_" if protocol else ""
        self._name = f"kilolayer_{prefix}connections"
        self._about = f"Open connections to the {protocol.upper() or 'gRPC'} address."
        if isinstance(address, TcpAddress):
            self._line = re.compile(rf"\s*\d+: [0-9A-F]+:{address.port:04X} [0-9A-F]+:[0-9A-F]+ {_ESTABLISHED} ")
            self._tables = (folder / "tcp", folder / "tcp6")
        else:  # columns: address, references, protocol, flags, type, state, inode, path
            self._line = re.compile(rf"\w+: \w+ \w+ \w+ \w+ {_CONNECTED} +\d+ {re.escape(str(address.path))}$")
            self._tables = (folder / "unix",)

    def collect(self) -> Iterable[Metric]:
        """Return one sample."""
        found = sum(self._count(table) for table in self._tables)
        return (GaugeMetricFamily(self._name, self._about, value=found),)

    def _count(self, table: Path) -> int:
        if not table.exists():
            return 0
        with table.open(errors="surrogateescape") as lines:  # as names of files are read
            return sum(self._line.match(line) is not None for line in lines)


def _used() -> int:
    """Return the number of descriptors that this process has open; its limit if none is left to count them with."""
    try:
        return sum(1 for _ in Path("/proc/self/fd").iterdir()) - 1  # without that of the folder itself
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        return _limit()


def _limit() -> int:
    """Return how many descriptors this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _UNLIMITED if soft == resource.RLIM_INFINITY else min(soft, _UNLIMITED)
