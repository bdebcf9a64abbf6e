"""The metrics of a run, one row per evaluation: metrics.jsonl, TensorBoard events, and curves.png drawn from them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import matplotlib as mpl
from tensorboardX import SummaryWriter

_CURVES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Fraction of goals reached", ("eval/success_any",)),
    ("Time at goal [control steps]", ("eval/time_at_goal",)),
    ("Loss", ("loss/critic", "loss/actor")),
)
_UNITS = ((1_000_000, "million"), (1_000, "thousand"), (1, ""))  # of environment steps, along the axis


class MetricsError(Exception):
    """A metrics.jsonl that cannot be read."""


class MetricsLog:
    """Writes the metrics of one run; a context manager that closes its files.

    Args:
        folder: the run's folder, which exists.
        title: title of the curves.
        keep_until: environment steps up to which an earlier log is continued; later rows are dropped.

    Raises:
        MetricsError: the earlier log cannot be read.
    """

    def __init__(self, folder: Path, *, title: str, keep_until: int) -> None:
        self.folder = folder
        self._title = title
        self.rows = [row for row in read_metrics(folder) if row["env_steps"] <= keep_until]
        lines = [json.dumps(row) + "\n" for row in self.rows]
        (folder / "metrics.jsonl").write_text("".join(lines))
        self._file = (folder / "metrics.jsonl").open("a")
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=keep_until + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        self._events.close()

    def write(self, row: Mapping[str, float]) -> None:
        """Append one row of scalars, which must contain `env_steps`."""
        self.rows.append(dict(row))
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, number in row.items():
            if name != "env_steps":
                self._events.add_scalar(name, number, int(row["env_steps"]))
        self._events.flush()

    def draw_curves(self) -> Path:
        """Draw the losses and the success over environment steps into curves.png; return its path."""
        return draw_curves(self.rows, self.folder / "curves.png", title=self._title)


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
        raise MetricsError(f"{path} has a line that is not JSON: {error}; repair or remove the file") from error
    for number, row in enumerate(rows, start=1):
        if not (isinstance(row, dict) and isinstance(row.get("env_steps"), int)):
            raise MetricsError(f"{path}, line {number}, has no integer env_steps; repair or remove the file")
    return rows


def draw_curves(rows: Sequence[Mapping[str, float]], path: Path, *, title: str) -> Path:
    """Draw success and losses of `rows` over environment steps into the PNG file `path`; return `path`."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    last = max((row["env_steps"] for row in rows), default=0)
    unit, unit_name = next((unit for unit in _UNITS if last >= 2 * unit[0]), _UNITS[-1])
    figure, panels = plt.subplots(1, len(_CURVES), figsize=(4.2 * len(_CURVES), 3.4), layout="constrained")
    figure.suptitle(title, fontweight="bold")
    for panel, (heading, names) in zip(panels, _CURVES, strict=True):
        for name in names:
            points = [(row["env_steps"] / unit, row[name]) for row in rows if name in row]
            if points:
                panel.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name.partition("/")[2])
        panel.set_title(heading, fontsize="medium")
        panel.set_xlabel(f"environment steps [{unit_name}]" if unit_name else "environment steps")
        panel.set_xlim(left=0)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        if len(panel.get_legend_handles_labels()[1]) > 1:
            panel.legend(frameon=False)
    panels[0].set_ylim(-0.03, 1.03)
    panels[1].set_ylim(bottom=0)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
