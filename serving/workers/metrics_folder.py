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
from serving.telemetry.metrics import MULTIPROCESS_FOLDER

_PREFIX = "kilolayer-workers-"
_POLICY_INFO = "kilolayer_policy_info"
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
    os.environ[MULTIPROCESS_FOLDER] = str(folder)


def remove_metrics(pid: int) -> None:
    """Remove the metrics of a worker that has ended and never served. They would be read at every scrape."""
    for file in Path(os.environ[MULTIPROCESS_FOLDER]).glob(f"*_{pid}.db"):
        file.unlink(missing_ok=True)


class WorkersCollector(Collector):
    """The sums of the workers' metrics, without the policies' versions that are not live any more."""

    def __init__(self) -> None:
        self._files = MultiProcessCollector(None)

    def collect(self) -> Iterable[Metric]:
        """Return the sums. If a file is removed meanwhile, the files are read again."""
        for _ in range(_MAX_READS - 1):
            with contextlib.suppress(FileNotFoundError):
                return self._read()
        return self._read()

    def _read(self) -> Iterable[Metric]:
        metrics = [*self._files.collect()]
        for metric in metrics:
            if metric.name == _POLICY_INFO:  # the files keep earlier versions, with 0
                metric.samples = [sample for sample in metric.samples if sample.value]
        return metrics
