"""What every benchmark shares: a description of the machine, the record as JSON, the printed table.

A record is a summary. Its figures are rounded to six significant digits, and nothing in it lists single samples.
"""

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

_LINE_LENGTH = 120
_SIGNIFICANT_DIGITS = 6
_LIBRARIES = ("jax", "jaxlib", "mujoco", "mujoco-mjx", "numpy", "grpcio")


def machine() -> dict[str, Any]:
    """Return what a figure depends on apart from the code: processor, cores, memory, devices, versions."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_at_start": os.getloadavg()[0],
        "devices": [device.device_kind for device in jax.devices()],
        "system": platform.platform(),
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in _LIBRARIES},
    }


def report(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    about: Mapping[str, Any],
    json_file: Path | None,
    notes: str = "",
    details: Mapping[str, Any] | None = None,
) -> None:
    """Write the record to `json_file`, if it is given, and print `rows` as a table.

    Args:
        title: the table's title.
        rows: rows of the table, all with the same keys; the keys are the column heads.
        about: `machine()`, called before the measurements began.
        json_file: file for the record; None writes no file.
        notes: the line under the table.
        details: more entries of the record, by name.
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
        json_file.write_text(dumps(record) + "\n")
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


def dumps(value: Any, *, indent: int = 0) -> str:
    """Return `value` as JSON with rounded floats; what fits on a line stays on one line."""
    one_line = json.dumps(_rounded(value))
    if not isinstance(value, dict | list | tuple) or indent + len(one_line) < _LINE_LENGTH:
        return one_line
    inner = indent + 2
    if isinstance(value, dict):
        entries = [f"{json.dumps(key)}: {dumps(entry, indent=inner)}" for key, entry in value.items()]
        opening, closing = "{}"
    else:
        entries = [dumps(entry, indent=inner) for entry in value]
        opening, closing = "[]"
    lines = f",\n{' ' * inner}".join(entries)
    return f"{opening}\n{' ' * inner}{lines}\n{' ' * indent}{closing}"


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of `work`, computed to the end, and the seconds it took."""
    began = time.perf_counter()
    result = jax.block_until_ready(work())
    return result, time.perf_counter() - began


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_SIGNIFICANT_DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(entry) for entry in value]
    return value


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
