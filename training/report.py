"""What a run tells: metrics.jsonl, TensorBoard events, a progress bar and curves.png."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import matplotlib as mpl
import rich.console
import rich.progress
from tensorboardX import SummaryWriter

_LINE = "{env_steps:>12,} steps  {eval/success_any:>5.2f} reached  {eval/time_at_goal:>6.1f} steps at goal"
_LOSSES = "  critic {loss/critic:>7.3f}  actor {loss/actor:>7.3f}"
_CURVES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("share of goals reached", ("eval/success_any",)),
    ("time at goal [steps]", ("eval/time_at_goal",)),
    ("loss", ("loss/critic", "loss/actor")),
)


class MetricsError(Exception):
    """A metrics.jsonl that cannot be read."""


class Report:
    """The record of one run; a context manager that closes its files.

    Args:
        folder: the run's folder, which exists.
        keep_until: environment steps up to which an earlier record is continued; later rows are dropped.
        console: where progress is shown.
    """

    def __init__(self, folder: Path, *, keep_until: int, console: rich.console.Console) -> None:
        self.folder = folder
        self.rows = [row for row in read_metrics(folder) if row["env_steps"] <= keep_until]
        self._console = console
        lines = [json.dumps(row) + "\n" for row in self.rows]
        (folder / "metrics.jsonl").write_text("".join(lines))
        self._file = (folder / "metrics.jsonl").open("a")
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=keep_until + 1)
        self._progress = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task: rich.progress.TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()
        self._file.close()
        self._events.close()

    def say(self, text: str) -> None:
        """Print one line above the progress bar."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def advance(self, description: str, *, done: int, of: int) -> None:
        """Move the progress bar to `done` of `of`."""
        if self._task is None:
            self._task = self._progress.add_task(description, total=of)
        self._progress.update(self._task, description=description, completed=done, total=of)

    def record(self, row: Mapping[str, float]) -> None:
        """Keep one row of scalars, which holds `env_steps`, and print the line that a person wants to see of it."""
        self.rows.append(dict(row))
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, number in row.items():
            if name != "env_steps":
                self._events.add_scalar(name, number, int(row["env_steps"]))
        self._events.flush()
        self.say(_LINE.format_map(row) + (_LOSSES.format_map(row) if "loss/critic" in row else ""))

    def draw_curves(self) -> Path:
        """Draw the losses and the success over environment steps into curves.png."""
        return draw_curves(self.rows, self.folder / "curves.png")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; none if there is no such file. A last line cut short by a kill is left out.

    Raises:
        MetricsError: another line is not JSON.
    """
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    try:
        whole_lines = path.read_text().rpartition("\n")[0].splitlines()
        rows = [json.loads(line) for line in whole_lines]
    except (RecursionError, ValueError) as error:  # also of bytes that are no text
        raise MetricsError(f"{path} holds a line that is not JSON: {error}; mend or remove the file") from error
    for number, row in enumerate(rows, start=1):
        if not (isinstance(row, dict) and isinstance(row.get("env_steps"), int)):
            raise MetricsError(f"{path}, line {number}, does not say its env_steps; mend or remove the file")
    return rows


def draw_curves(rows: Sequence[Mapping[str, float]], path: Path) -> Path:
    """Draw the losses and the success of `rows` over environment steps into the PNG file `path`."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(_CURVES), figsize=(4.2 * len(_CURVES), 3.2), layout="constrained")
    for panel, (title, names) in zip(panels, _CURVES, strict=True):
        for name in names:
            points = [(row["env_steps"], row[name]) for row in rows if name in row]
            if points:
                panel.plot(*zip(*points, strict=True), marker=".", label=name.partition("/")[2])
        panel.set(title=title, xlabel="environment steps")
        panel.ticklabel_format(axis="x", style="sci", scilimits=(0, 0))
        panel.grid(alpha=0.3)
        if panel.get_legend_handles_labels()[1] and len(names) > 1:
            panel.legend(frameon=False)
    panels[0].set_ylim(-0.03, 1.03)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
