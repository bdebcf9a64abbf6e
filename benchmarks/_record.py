"""What every benchmark shares: the machine it ran on, its record as JSON, its table."""

import datetime
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import rich.console
import rich.table

_LIBRARIES = ("jax", "jaxlib", "mujoco", "mujoco-mjx", "numpy", "grpcio")


def machine() -> dict[str, Any]:
    """What a figure depends on besides the code: processor, cores, memory, devices, versions."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_at_start": os.getloadavg()[0],
        "devices": [device.device_kind for device in jax.devices()],
        "system": platform.platform(),
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in _LIBRARIES},
    }


def publish(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    about: Mapping[str, Any],
    json_file: Path | None,
    notes: str = "",
    details: Mapping[str, Any] | None = None,
) -> None:
    """Write the record to `json_file`, if there is one, and print `rows` as a table, last.

    Args:
        rows: all with the same keys, which head the columns.
        about: `machine()` as it was when the measurements began.
        notes: a line under the table.
        details: what the record holds besides, by name.
    """
    record = {
        "benchmark": title,
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": about,
        "notes": notes,
        "rows": rows,
        **(details or {}),
    }
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(record, indent=2) + "\n")
    console = rich.console.Console()
    versions = " ".join(f"{name} {version}" for name, version in about["versions"].items())
    console.print(
        f"{about['processor']}, {about['cores']} cores, {about['memory_gib']} GiB; {versions}", highlight=False
    )
    table = rich.table.Table(title=title, caption=notes or None)
    for column in rows[0]:
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*(_cell(cell) for cell in row.values()))
    console.print(table)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What `work` returns, once it is computed, and the seconds it took."""
    began = time.perf_counter()
    result = jax.block_until_ready(work())
    return result, time.perf_counter() - began


def _cell(cell: object) -> str:
    if cell is None:
        return ""
    return (
        f"{cell:,.3g}"
        if isinstance(cell, float) and cell < 1000
        else f"{cell:,.0f}"
        if isinstance(cell, float)
        else str(cell)
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
