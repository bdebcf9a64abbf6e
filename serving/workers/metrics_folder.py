"""The temporary folder into which workers write their metrics, and the sums of these metrics."""

import contextlib
import os
from collections.abc import Generator, Iterable
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from policy.temporary_folder import temporary_folder
from serving.errors import StartupError

_PREFIX = "kilolayer-workers-"
_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # of prometheus_client, in the environment of the workers
_MAX_READS = 10  # of all files, if files are removed meanwhile


@contextlib.contextmanager
def metrics_folder() -> Generator[Path]:
    """Make a folder for the workers' metrics, which is removed at the end of the context; remove those left behind.

    Raises:
        StartupError: it cannot be made.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(temporary_folder(_PREFIX))
        except OSError as error:
            raise StartupError(
                f"cannot make a temporary folder for the workers' metrics ({error.strerror}); set TMPDIR to a"
                " writable folder with free space"
            ) from error
        yield folder


def write_workers_metrics_to(folder: Path) -> None:
    """Let the workers that are started from now on write their metrics into `folder`."""
    os.environ[_VARIABLE] = str(folder)


def remove_metrics(pid: int) -> None:
    """Remove the metrics of a worker that has ended and never served. They would be read at every scrape."""
    for file in Path(os.environ[_VARIABLE]).glob(f"*_{pid}.db"):
        file.unlink(missing_ok=True)


class WorkersCollector(Collector):
    """The sums of the workers' metrics."""

    def __init__(self) -> None:
        self._files = MultiProcessCollector(None)

    def collect(self) -> Iterable[Metric]:
        """Return the sums. If a file is removed meanwhile, the files are read again."""
        for _ in range(_MAX_READS - 1):
            with contextlib.suppress(FileNotFoundError):
                return self._files.collect()
        return self._files.collect()
