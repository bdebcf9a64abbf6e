"""Draw the metrics of one run, or of several runs that differ in the seed, as one picture: a panel per question."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

Rows = Sequence[Mapping[str, float]]  # of a run's metrics.jsonl

_UNITS = ((1_000_000, "million"), (1_000, "thousand"), (1, ""))  # of environment steps, along the axis


_REFERENCES = {"random_actions": "--", "zero_actions": ":"}  # kinds of reference policies, with the style of a line


class Line(NamedTuple):
    """One metric in a panel."""

    metric: str
    label: str
    color: str
    style: str = "-"


class Panel(NamedTuple):
    """The part of the picture that answers one question."""

    question: str
    ylabel: str
    lines: tuple[Line, ...]
    is_share: bool = False  # whether the axis goes from 0 to 1, and the legend has the last values
    from_zero: bool = False  # whether the axis begins at 0


PANELS = (
    Panel(
        "Does it reach its goals and stay?",
        "share of episodes, share of time",
        (
            Line("eval/stay", "stay since the first arrival:", "tab:blue"),
            # dashed and drawn last, because both lines may be equal
            Line("eval/touched", "touched at least once:", "tab:orange", "--"),
        ),
        is_share=True,
    ),
    Panel(
        "Do the losses settle?",
        "loss",
        (Line("loss/critic", "critic", "tab:purple"), Line("loss/actor", "actor", "tab:green")),
    ),
    Panel("Does it explore?", "entropy of the actor [nats]", (Line("entropy", "entropy", "tab:red"),)),
    Panel(
        "Does the critic tell goals apart?",
        "accuracy, share of rows",
        (Line("contrast/accuracy", "accuracy", "tab:cyan"),),
        from_zero=True,
    ),
)


def draw(
    runs: Sequence[Rows],
    path: Path,
    *,
    title: str,
    target_entropy: float | None = None,
    references: Mapping[str, Mapping[str, float]] | None = None,
) -> Path:
    """Draw `runs` over environment steps into the PNG file `path`; return `path`.

    A single run has bands where its metrics have intervals. Of several runs each is a thin line; their mean is a thick
    line with a band from the lowest to the highest run, from the latest first evaluation to the earliest last one.
    Between its evaluations a run is interpolated linearly. A panel whose metrics no run has is left out.

    Args:
        target_entropy: in nats, a dashed line beside the entropy.
        references: figures of the reference policies, as `references.read` returns them, for lines beside the stay.
    """
    panels = [
        panel for panel in PANELS if any(line.metric in row for line in panel.lines for rows in runs for row in rows)
    ]
    panels = panels or list(PANELS)
    last = max((row["env_steps"] for rows in runs for row in rows), default=0)
    unit, unit_name = next((unit for unit in _UNITS if last >= 2 * unit[0]), _UNITS[-1])
    columns = 2 if len(panels) in {2, 4} else len(panels)
    figure = Figure(
        figsize=(6.2 * columns, 3.4 * (len(panels) // columns) + 0.5),
        layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.12),
    )
    FigureCanvasAgg(figure)  # not pyplot, which would choose a backend for the whole process
    figure.suptitle(title, fontsize="x-large", fontweight="bold")
    grid = figure.subplots(len(panels) // columns, columns, sharex=True, squeeze=False)
    for panel, axes in zip(panels, grid.flat, strict=True):
        for line in panel.lines:
            _draw_line(axes, line, runs, unit=unit, with_last=panel.is_share)
        if target_entropy is not None and any(line.metric == "entropy" for line in panel.lines):
            axes.axhline(target_entropy, color="0.35", linestyle="--", linewidth=1.4, label="target")
        if references and any(line.metric == "eval/stay" for line in panel.lines):
            for kind, style in _REFERENCES.items():
                stay = references[kind]["eval/stay"]
                label = f"stay with {kind.replace('_', ' ')}: {stay:.2f}"
                axes.axhline(stay, color="0.35", linestyle=style, linewidth=1.4, label=label)
        _finish(axes, panel)
    for axes in grid[-1]:
        axes.set_xlabel(f"environment steps [{unit_name}]" if unit_name else "environment steps", fontsize="large")
    figure.savefig(path, dpi=140)
    return path


def _draw_line(axes: Axes, line: Line, runs: Sequence[Rows], *, unit: int, with_last: bool) -> None:
    """Draw one metric of every run."""
    curves = [{row["env_steps"]: row[line.metric] for row in rows if line.metric in row} for rows in runs]
    common = _common_steps(curves)
    steps = [step / unit for step in common]
    by_run = [np.interp(common, list(curve), list(curve.values())) for curve in curves if common]
    values = np.array(by_run)  # [runs, steps]
    low, high = (values.min(axis=0), values.max(axis=0)) if common else ([], [])
    if len(runs) > 1:
        for curve in filter(None, curves):
            axes.plot(
                [step / unit for step in curve], list(curve.values()), color=line.color, linewidth=0.8, alpha=0.35
            )
    else:  # an interval where the metric has one, else nothing
        rows = [row for row in runs[0] if line.metric in row]
        low, high = ([row.get(f"{line.metric}_{end}", math.nan) for row in rows] for end in ("low", "high"))
    axes.fill_between(steps, low, high, color=line.color, alpha=0.2, linewidth=0)
    if steps:
        mean = values.mean(axis=0)
        label = f"{line.label} {mean[-1]:.2f}" if with_last else line.label
        marker = "o" if len(steps) <= 20 else None
        look: dict[str, Any] = {"color": line.color, "linestyle": line.style, "marker": marker, "markersize": 4}
        axes.plot(steps, mean, linewidth=2.2, label=label, **look)


def _common_steps(curves: Sequence[Mapping[float, float]]) -> list[float]:
    """Return the steps at which any run was evaluated, as far as every run has evaluations before and after."""
    if not all(curves):
        return []
    first, last = max(min(curve) for curve in curves), min(max(curve) for curve in curves)
    return sorted({step for curve in curves for step in curve if first <= step <= last})


def _finish(axes: Axes, panel: Panel) -> None:
    """Give a panel its texts and its limits."""
    axes.set_title(panel.question, fontsize="large", loc="left")
    axes.set_ylabel(panel.ylabel, fontsize="large")
    if panel.is_share:
        axes.set_ylim(-0.02, 1.02)
    elif panel.from_zero:
        axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(frameon=False, fontsize="large")
