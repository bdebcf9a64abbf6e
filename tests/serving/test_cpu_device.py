"""The device that computes on the calling thread, and the engine's limits with it."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from policy.bundle import Bundle
from serving.engine import cpu_device
from serving.engine.devices import Device
from serving.engine.engine import Engine, Kind
from tests.parameters import fresh_params
from tests.samples import policy_spec


@pytest.fixture
def no_device_yet() -> Iterator[None]:
    """The cached device is forgotten, as in a new process."""
    cpu_device.calling_thread_device.cache_clear()
    yield
    cpu_device.calling_thread_device.cache_clear()


def others_share(engine: Engine, rows: np.ndarray) -> float:
    """Return the processor time that other threads spend on batches, divided by that of the calling thread.

    The least of several measurements: threads that tests before have left work now and then.
    """

    def measure() -> float:
        own_s, all_s = time.thread_time(), time.process_time()
        for _ in range(20):
            engine.compute(Kind.ACT, rows)
        own_s, all_s = time.thread_time() - own_s, time.process_time() - all_s
        return (all_s - own_s) / own_s

    return min(measure() for _ in range(8))


def test_a_small_batch_occupies_no_thread_but_the_caller() -> None:
    spec = policy_spec(actor_depth=8, actor_width=256)
    engine = Engine(fresh_params(0, spec), spec, max_rows=64)
    engine.compile(Kind.ACT, 64)
    rows = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
    assert others_share(engine, rows) < 0.25  # about 1 if XLA splits operations among two cores


@pytest.mark.parametrize("cores", [1, 2])
def test_a_large_unaligned_batch_is_computed_on_the_calling_thread(monkeypatch: pytest.MonkeyPatch, cores: int) -> None:
    """XLA would copy such an input, and then compute, in a thread that compiles: one batch after another."""
    monkeypatch.setattr("serving.engine.engine.available_cores", lambda: cores)
    spec = policy_spec(state_names=tuple(f"state {number}" for number in range(400)), actor_depth=8, actor_width=64)
    engine = Engine(fresh_params(0, spec), spec, max_rows=256)
    engine.compile(Kind.ACT, 256)
    rows = cpu_device.aligned_zeros(1, 1 + 256 * 402)[0, 1:].reshape(256, 402)
    assert not cpu_device.is_aligned(rows)
    assert others_share(engine, rows) < 0.25


def test_threads_compute_at_the_same_time_what_one_computes_alone() -> None:
    spec = policy_spec(actor_depth=8, actor_width=64)
    engine = Engine(fresh_params(0, spec), spec, max_rows=64)
    engine.compile(Kind.ACT, 64)
    batches = np.random.default_rng(0).normal(size=(40, 64, 6)).astype(np.float32)
    alone = [engine.compute(Kind.ACT, rows) for rows in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda rows: engine.compute(Kind.ACT, rows), batches))
    np.testing.assert_array_equal(together, alone)


def test_a_cpu_computes_one_batch_per_core_of_at_most_1024_rows(
    served_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.engine.engine.available_cores", lambda: 3)
    engine = Engine(served_bundle.params, served_bundle.spec, max_rows=4096)
    assert (engine.max_concurrency, engine.max_rows, engine.full_rows) == (3, 1024, 64)
    assert engine.buckets[Kind.ACT][-1] == engine.buckets[Kind.SAMPLE][-1] == 1024
    engine = Engine(served_bundle.params, served_bundle.spec, max_rows=16)
    assert (engine.max_concurrency, engine.max_rows, engine.full_rows) == (3, 16, 16)


def test_an_accelerator_computes_one_batch_at_a_time_of_any_size(
    served_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerator = Device(jax.devices("cpu")[0], is_calling_thread=False)
    monkeypatch.setattr("serving.engine.engine.find_device", lambda _: accelerator)
    engine = Engine(served_bundle.params, served_bundle.spec, max_rows=4096)
    assert (engine.max_concurrency, engine.max_rows, engine.full_rows) == (1, 4096, 4096)
    assert engine.buckets[Kind.ACT][-1] == 4096


@pytest.mark.parametrize(("rows", "columns"), [(1, 3), (5, 31), (256, 402)])
def test_zeros_are_aligned_and_an_offset_view_is_not(rows: int, columns: int) -> None:
    zeros = cpu_device.aligned_zeros(rows, columns)
    assert (zeros.shape, zeros.dtype) == ((rows, columns), np.float32)
    assert not zeros.any()
    assert zeros.ctypes.data % 64 == 0
    assert cpu_device.is_aligned(zeros)
    assert not cpu_device.is_aligned(zeros.ravel()[1:])


def test_the_environment_is_left_as_it_was(no_device_yet: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PJRT_NPROC", "3")
    assert cpu_device.calling_thread_device() is cpu_device.calling_thread_device()
    assert os.environ["PJRT_NPROC"] == "3"
    monkeypatch.delenv("PJRT_NPROC")
    cpu_device.calling_thread_device.cache_clear()
    cpu_device.calling_thread_device()
    assert "PJRT_NPROC" not in os.environ
