"""The metrics of a run, one row per evaluation: metrics.jsonl, TensorBoard events, and curves.png drawn from them."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tensorboardX.summary import hparams, scalar

from policy import whole_file
from training.config import TrainConfig
from training.run_dir import curves, references
from training.run_dir.event_file import EventFile

NAME, CURVES_NAME = "metrics.jsonl", "curves.png"
_COMPARED = ("eval/stay", "eval/touched", "eval/time_at_goal")  # in TensorBoard's table of hyperparameters

_DRAW_EVERY_S = 30.0  # drawing takes about a second, which many quick evaluations would repeat


class MetricsError(Exception):
    """A metrics.jsonl that cannot be read."""


class MetricsLog:
    """Writes the metrics of one run; a context manager that closes its files.

    The curves are drawn after an evaluation, at most every 30 s, and at the end of the context, also after an error.

    Args:
        config: of the run, whose folder exists.
        keep_until: environment steps up to which an earlier log is continued; later rows are dropped.
        target_entropy: of the actor, in nats, for the curves; None: there is none.
        clock: seconds that never go back.

    Raises:
        MetricsError: the earlier log cannot be read.
        OSError: a file cannot be written; the message names it, or its folder. So do the methods.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        keep_until: int,
        target_entropy: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = folder = config.out
        self._title, self._target_entropy, self._clock = config.title, target_entropy, clock
        self._drawn_s, self._is_drawn = clock(), True
        self.rows = [row for row in read_metrics(folder) if row["env_steps"] <= keep_until]
        self._path = folder / NAME
        kept = "".join(json.dumps(row) + "\n" for row in self.rows).encode()
        if not self._path.exists() or self._path.read_bytes() != kept:
            whole_file.write(self._path, kept)
        self._file = self._path.open("a")
        self._events = EventFile(folder / "tensorboard", purge_step=keep_until + 1)
        shown = {name: "not set" if value is None else value for name, value in config.to_json().items()}
        experiment, begin, self._end = hparams(shown, dict.fromkeys(_COMPARED, 0.0))
        self._events.add(experiment, begin)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        reported = (OSError,) if error else ()  # such as a full disk
        with contextlib.suppress(*reported), contextlib.ExitStack() as files:
            files.callback(self._file.close)
            files.callback(self._events.close)
            self._events.add(self._end)
            if not self._is_drawn:
                self.draw_curves()

    def write(self, row: Mapping[str, float]) -> None:
        """Append one row of scalars, which must contain `env_steps`. Draw the curves if it is time to."""
        self.rows.append(dict(row))
        with whole_file.named_errors(self._path):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        scalars = [scalar(name, number) for name, number in row.items() if name != "env_steps"]
        self._events.add(*scalars, step=int(row["env_steps"]))
        self._events.flush()
        self._is_drawn = False
        if self._clock() - self._drawn_s >= _DRAW_EVERY_S:
            self.draw_curves()

    def draw_curves(self) -> Path:
        """Draw the metrics over environment steps into curves.png, whole or not at all; return its path."""
        path = self.folder / CURVES_NAME
        with whole_file.replacing(path) as draft:
            curves.draw(
                [self.rows],
                draft,
                title=self._title,
                target_entropy=self._target_entropy,
                references=references.read(self.folder),
            )
        self._drawn_s, self._is_drawn = self._clock(), True
        return path


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics.jsonl, or none if there is no such file.

    A last line without a line break was cut short by a kill and is left out.

    Raises:
        MetricsError: another line is not JSON, or has no `env_steps`.
    """
    path = folder / NAME
    if not path.exists():
        return []
    try:
        whole_lines = path.read_text().rpartition("\n")[0].splitlines()
        rows = [json.loads(line) for line in whole_lines]
    except (RecursionError, ValueError) as error:  # ValueError also for bytes that are not UTF-8
        raise MetricsError(f"{path} has a line that is not JSON: {error}; repair it, or use another --out") from error
    for number, row in enumerate(rows, start=1):
        if not (isinstance(row, dict) and isinstance(row.get("env_steps"), int)):
            raise MetricsError(f"{path}, line {number}, has no integer env_steps; repair it, or use another --out")
    return rows
