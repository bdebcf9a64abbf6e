"""One compilation cache for all processes of a test run, kept for the next run; the longest tests first.

JAX names a compiled program after a hash of everything that went into it: the program, the compiler's options, the
versions. So an entry is never stale, and what a program compiles in one process is read by every other: the workers of
pytest, and the training runs and servers that tests start.
"""

import os
from pathlib import Path

import pytest

_CACHE = "JAX_COMPILATION_CACHE_DIR"
_MOST_BYTES = 2 * 2**30
_LONGEST = ("test_every_environment.py", "test_warp.py", "test_end_to_end.py", "test_kills.py", "test_own_robot.py")


def pytest_configure(config: pytest.Config) -> None:
    """Choose the cache's folder before anything imports JAX. Workers and subprocesses inherit the variables."""
    if _CACHE not in os.environ and config.pluginmanager.hasplugin("cacheprovider"):
        folder = config.cache.mkdir("jax")
        _shrink(folder)
        os.environ[_CACHE] = str(folder)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A long test that comes last keeps one worker waiting for the other."""
    items.sort(key=lambda item: item.path.name not in _LONGEST)


def _shrink(folder: Path) -> None:
    """Delete the oldest entries until the others fit into `_MOST_BYTES`."""
    entries = sorted((entry.stat().st_mtime, entry.stat().st_size, entry) for entry in folder.iterdir())
    total = sum(size for _, size, _ in entries)
    for _, size, entry in entries:
        if total <= _MOST_BYTES:
            return
        entry.unlink()
        total -= size
