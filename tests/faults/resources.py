"""What a process and its descendants use: memory, file descriptors, threads, and bytes of their log. Linux only."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass(frozen=True)
class Resources:
    """One reading of a tree of processes. Memory that processes share counts once for each."""

    processes: int
    resident_bytes: int
    descriptors: int
    threads: int
    cpu_s: float
    log_bytes: int


def read(pid: int, *, log: Path | None = None) -> Resources:
    """Read the process `pid` and its descendants, and the size of `log`. A process that ends meanwhile adds nothing.

    Raises:
        ProcessLookupError: there is no process `pid`.
    """
    if not _folder(pid).exists():
        raise ProcessLookupError(f"there is no process {pid}")
    readings = [reading for each in tree(pid) if (reading := _read_one(each))]
    resident, descriptors, threads, cpu_s = map(sum, zip(*readings, strict=True))
    return Resources(
        processes=len(readings),
        resident_bytes=int(resident),
        descriptors=int(descriptors),
        threads=int(threads),
        cpu_s=cpu_s,
        log_bytes=log.stat().st_size if log else 0,
    )


def tree(pid: int) -> Iterator[int]:
    """Yield the process `pid` and its descendants."""
    yield pid
    try:
        tasks = list((_folder(pid) / "task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:  # it has ended
        return
    for child in children:
        yield from tree(child)


def _read_one(pid: int) -> tuple[int, int, int, float] | None:
    folder = _folder(pid)
    try:
        resident = int((folder / "statm").read_text().split()[1]) * _PAGE_BYTES
        fields = (folder / "stat").read_text().rpartition(")")[2].split()  # from the state, field 3 of proc(5), on
        ticks = int(fields[14 - 3]) + int(fields[15 - 3])
        return resident, len(list((folder / "fd").iterdir())), int(fields[20 - 3]), ticks / _TICKS_PER_S
    except OSError:  # it has ended
        return None


def _folder(pid: int) -> Path:
    return Path(f"/proc/{pid}")
