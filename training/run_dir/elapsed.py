"""time.json: how long a run has trained, in all its processes, and which time limit has ended it."""

import json
from pathlib import Path
from typing import NamedTuple

from policy import whole_file
from training.config import TrainConfig
from training.run_dir.metrics_log import MetricsError

NAME = "time.json"


class Elapsed(NamedTuple):
    """The content of the file."""

    total_s: float = 0.0  # of all processes, each until its last snapshot
    ended_at_minutes: float = 0.0  # the run is over for every max_minutes up to this one


def read(folder: Path) -> Elapsed:
    """Return what was written last; zeros if there is no file.

    Raises:
        MetricsError: the file cannot be read.
    """
    path = folder / NAME
    if not path.exists():
        return Elapsed()
    try:
        fields = json.loads(path.read_bytes())
        return Elapsed(float(fields["total_s"]), float(fields["ended_at_minutes"]))
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise MetricsError(f"{path} cannot be read: {error!r}; repair or remove the file") from error


def write(config: TrainConfig, total_s: float, *, time_is_up: bool = False) -> None:
    """Replace the file of a run that has trained for `total_s`, whole or not at all, also after a power failure.

    Args:
        time_is_up: whether `max_minutes` has ended the run.
    """
    # A run that was resumed without auto may have trained for longer than its last limit.
    ended_at = max(config.max_minutes, total_s / 60) if time_is_up else 0.0
    whole_file.write(config.out / NAME, json.dumps(Elapsed(total_s, ended_at)._asdict()) + "\n")
