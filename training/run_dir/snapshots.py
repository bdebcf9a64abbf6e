"""Which snapshots a folder has, by their names alone. Imports no JAX."""

from pathlib import Path


def iterations(folder: Path) -> list[int]:
    """Return the iterations of all snapshots, unverified, oldest first; none if there is no such folder."""
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isascii() and name.isdecimal())
