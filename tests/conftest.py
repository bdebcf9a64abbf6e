"""One compilation cache for all tests of a run, and for the processes they start."""

import os
import shutil
import tempfile

import pytest

_CACHE = tempfile.mkdtemp(prefix="kilolayer-tests-jax-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE  # before anything imports jax
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(_CACHE, ignore_errors=True)
