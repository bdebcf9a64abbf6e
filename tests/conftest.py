"""One compilation cache for all tests of a run, and for the processes they start; the longest files first."""

import os
import shutil
import tempfile

import pytest

_CACHE = tempfile.mkdtemp(prefix="kilolayer-tests-jax-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE  # before anything imports jax
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
_LONGEST = ("test_every_environment.py", "test_end_to_end.py", "test_kills.py", "test_own_robot.py", "test_warp.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`make test` hands files out in this order, and whoever gets a long one last keeps all waiting."""
    items.sort(key=lambda item: item.path.name not in _LONGEST)


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(_CACHE, ignore_errors=True)
