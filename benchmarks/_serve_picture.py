"""The picture of the serving benchmark: latency and accepted calls by offered load."""

import math
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def draw(overload: dict[str, Any], path: Path) -> None:
    """Draw the overload part of a record into the PNG file `path`."""
    figure = Figure(figsize=(9.5, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    latency, accepted = figure.subplots(1, 2)
    loads, capacity, rows = overload["loads"], overload["capacity_per_s"], overload["rows_per_call"]
    offered = [load["offered_per_s"] / capacity for load in loads]
    for rank, color in (("p50", "tab:blue"), ("p99", "tab:red")):
        times = [load["latency_us"][rank] / 1000 if load["latency_us"] else math.nan for load in loads]
        latency.plot(offered, times, color=color, marker="o", markersize=4, label=f"{rank} of accepted calls")
    latency.axhline(overload["deadline_ms"], color="gray", linestyle=":", label="deadline")
    accepted.plot(offered, [load["accepted_per_s"] for load in loads], marker="o", markersize=4, label="accepted")
    accepted.axhline(capacity, color="gray", linestyle=":", label="capacity without overload")
    latency.set(title="Latency from the intended send time", ylabel="ms", ylim=(0, None))
    accepted.set(title=f"Accepted calls of {rows} rows", ylabel="calls/s", ylim=(0, None))
    for panel in (latency, accepted):
        panel.set(xlabel=f"offered load / capacity ({capacity:.0f} calls/s)")
        panel.set_xscale("log")
        panel.set_xticks(offered, [f"{multiple:.2g}" for multiple in offered])
        panel.minorticks_off()
        panel.legend(frameon=False)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
