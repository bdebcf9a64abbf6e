"""What the serving benchmark shows of an overload: its figures by offered load, and their picture."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from _serve_rows import OVERLOAD_ROWS, Overload


def offers(found: Overload) -> dict[str, Any]:
    """What the record holds of an overload, and the picture shows."""
    by_offer = [
        {
            "multiple": multiple,
            "offered_per_s": result["offered_per_s"],
            "accepted_per_s": result["answered_per_s"],
            "codes": result["codes"],
            "latency_us": result["latency_us"],
            "refusal_us": result["refusal_us"],
            "lateness_us": result["lateness_us"],
        }
        for multiple, result in found.by_multiple.items()
    ]
    known = {"capacity_per_s": found.capacity_per_s, "normal_us": found.normal_us, "memory_bytes": found.memory}
    return {"rows_per_call": OVERLOAD_ROWS, **known, "offers": by_offer}


def draw(overloaded: dict[str, Any], path: Path, *, deadline_ms: float) -> None:
    """Draw latency, and accepted calls, against offered load into the PNG file `path`."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (latency, accepted) = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
    shown = [offer for offer in overloaded["offers"] if offer["latency_us"] is not None]
    capacity = overloaded["capacity_per_s"]
    offered = [offer["offered_per_s"] / capacity for offer in shown]
    for rank, colour in (("p50", "tab:blue"), ("p99", "tab:red")):
        times = [offer["latency_us"][rank] / 1000 for offer in shown]
        latency.plot(offered, times, color=colour, marker=".", label=f"{rank} of accepted calls")
    latency.axhline(deadline_ms, color="grey", linestyle=":", label="deadline")
    accepted.plot(offered, [offer["accepted_per_s"] for offer in shown], marker=".", label="accepted")
    accepted.axhline(capacity, color="grey", linestyle=":", label="capacity, closed loop")
    latency.set(title="latency [ms] from the intended send time", ylim=(0, None))
    accepted.set(title="accepted calls per second", ylim=(0, None))
    for panel in (latency, accepted):
        panel.set(xlabel=f"offered load / capacity ({capacity:.0f} calls/s of {overloaded['rows_per_call']} rows)")
        panel.set_xscale("log")
        panel.set_xticks(offered, [f"{multiple:.2g}" for multiple in offered])
        panel.minorticks_off()
        panel.legend(frameon=False)
        panel.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
