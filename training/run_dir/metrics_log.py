"""The metrics of a run, one row per evaluation: metrics.jsonl, TensorBoard events, and curves.png drawn from them."""

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tensorboardX import SummaryWriter
from tensorboardX.summary import hparams

from training.config import TrainConfig
from training.run_dir import curves, references

_COMPARED = ("eval/stay", "eval/touched", "eval/time_at_goal")  # in TensorBoard's table of hyperparameters

_DRAW_EVERY_S = 30.0  # drawing takes about a second, which many quick evaluations would repeat
CURVES_DRAFT_NAME = ".curves.png"  # of the picture while it is being written


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
        lines = [json.dumps(row) + "\n" for row in self.rows]
        (folder / "metrics.jsonl").write_text("".join(lines))
        self._file = (folder / "metrics.jsonl").open("a")
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=keep_until + 1)
        shown = {name: "not set" if value is None else value for name, value in config.to_json().items()}
        experiment, begin, self._end = hparams(shown, dict.fromkeys(_COMPARED, 0.0))
        self._add(experiment, begin)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        self._add(self._end)
        self._events.close()
        if not self._is_drawn:
            with contextlib.suppress(*() if error is None else (OSError,)):  # a full disk is already being reported
                self.draw_curves()

    def write(self, row: Mapping[str, float]) -> None:
        """Append one row of scalars, which must contain `env_steps`. Draw the curves if it is time to."""
        self.rows.append(dict(row))
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, number in row.items():
            if name != "env_steps":
                self._events.add_scalar(name, number, int(row["env_steps"]))
        self._events.flush()
        self._is_drawn = False
        if self._clock() - self._drawn_s >= _DRAW_EVERY_S:
            self.draw_curves()

    def draw_curves(self) -> Path:
        """Draw the metrics over environment steps into curves.png, whole or not at all; return its path."""
        draft = curves.draw(
            [self.rows],
            self.folder / CURVES_DRAFT_NAME,
            title=self._title,
            target_entropy=self._target_entropy,
            references=references.read(self.folder),
        )
        self._drawn_s, self._is_drawn = self._clock(), True
        return draft.rename(self.folder / "curves.png")

    def _add(self, *summaries: Any) -> None:
        """Add to the same event file, where the hyperparameters stand beside the metrics; `add_hparams` would not."""
        writer: Any = self._events.file_writer
        for summary in summaries:
            writer.add_summary(summary)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics.jsonl, or none if there is no such file.

    A last line without a line break was cut short by a kill and is left out.

    Raises:
        MetricsError: another line is not JSON, or has no `env_steps`.
    """
    path = folder / "metrics.jsonl"
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
