"""What the record of a serving benchmark keeps of its loads: one summary per load and target, not one per round."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from _serve_load import Plan
from _serve_rows import OVERLOAD_ROWS, Overload, Phase

_BY_ROUND = (
    "offered_per_s",
    "answered_per_s",
    "server_cpu_share",
    "server_cpu_us_per_call",
    "generator_cpu_share",
    "rows_per_s",
)
_TIMES = ("latency_us", "rejection_us", "lateness_us")
_RANKS = ("p50", "p99", "max")
_COUNTS = ("codes", "discarded", "details")


def load_summaries(phases: Sequence[Phase]) -> list[dict[str, Any]]:
    """Return one summary for each load and target, in the order of their first rounds.

    A figure is the list of its values, one per round. Calls are counted over all rounds.
    """
    rounds: dict[tuple[str, str], list[Phase]] = {}
    for phase in phases:
        rounds.setdefault((phase["load"], phase["target"]), []).append(phase)
    return [{"load": load, "target": target} | _summary(same) for (load, target), same in rounds.items()]


def overload_summary(found: Overload, *, deadline_ms: float) -> dict[str, Any]:
    """Return the figures of every offered load; the picture is drawn from them."""
    loads = [
        {
            "multiple": multiple,
            "offered_per_s": result["offered_per_s"],
            "accepted_per_s": result["answered_per_s"],
            "codes": result["codes"],
            **{times: result[times] for times in _TIMES},
        }
        for multiple, result in found.by_multiple.items()
    ]
    return {
        "rows_per_call": OVERLOAD_ROWS,
        "deadline_ms": deadline_ms,
        "capacity_per_s": found.capacity_per_s,
        "normal_us": found.normal_us,
        "memory_bytes": found.memory,
        "loads": loads,
    }


def _summary(rounds: Sequence[Phase]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    if "plan" in rounds[0]:
        summary["plan"] = _settings(rounds[0]["plan"])
    summary |= {name: [phase[name] for phase in rounds] for name in _BY_ROUND if name in rounds[0]}
    for times in _TIMES:
        measured = [phase[times] for phase in rounds if phase.get(times) is not None]
        if measured:
            ranks = [rank for rank in _RANKS if rank in measured[0]]
            summary[times] = {rank: [each[rank] for each in measured] for rank in ranks}
    for name in _COUNTS:
        total: Counter[str] = Counter()
        for phase in rounds:
            total.update(phase.get(name, {}))
        if total:
            summary[name] = dict(total)
    probes = Counter(code for phase in rounds for *_, code in phase.get("probes", ()))
    if probes:
        summary["probe_codes"] = dict(probes)
    if "memory_bytes" in rounds[0]:
        summary["memory_bytes"] = rounds[0]["memory_bytes"]
    return summary


def _settings(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a plan that differ from the defaults; the address and the file differ from run to run."""
    defaults = {name: field.default for name, field in Plan.__dataclass_fields__.items()}
    return {name: value for name, value in plan.items() if name not in {"address", "ca"} and value != defaults[name]}
