"""The device that computes on the thread that calls, and which batches the engine gives to it."""

import os
import time
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from policy.bundle import Bundle
from policy.networks import init_policy
from serving import cores
from serving.engine import Engine, Kind
from tests.samples import policy_spec

ONE_CORE, ALL_CORES = 0.0, float("inf")  # of what splitting must be worth: never, and always


@pytest.fixture
def asked_anew() -> Iterator[None]:
    """As in a process where nobody has asked for the device."""
    cores.calling_thread.cache_clear()
    yield
    cores.calling_thread.cache_clear()


def others_share(engine: Engine, rows: np.ndarray) -> float:
    """Processor time that other threads of this process spend on batches, as a share of the calling thread's."""
    own_s, all_s = time.thread_time(), time.process_time()
    for _ in range(40):
        engine.compute(Kind.ACT, rows)
    own_s, all_s = time.thread_time() - own_s, time.process_time() - all_s
    return (all_s - own_s) / own_s


def test_a_small_batch_occupies_no_thread_but_the_caller() -> None:
    spec = policy_spec(actor_depth=8, actor_width=256)
    engine = Engine(init_policy(jax.random.key(0), spec), spec, max_rows=64)
    engine.compile(Kind.ACT, 64)
    rows = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
    assert engine.unsplit == 1
    assert others_share(engine, rows) < 0.1  # split, it is about one


@pytest.mark.parametrize(("worth", "unsplit"), [(ONE_CORE, 3), (ALL_CORES, 1)])
def test_middling_batches_go_where_they_are_faster_and_large_ones_to_all_cores(
    served_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, worth: float, unsplit: int
) -> None:
    monkeypatch.setattr("serving.engine._WORTH_SPLITTING", worth)
    monkeypatch.setattr("serving.engine.available", lambda: 2)
    engine = Engine(served_bundle.params, served_bundle.spec, max_rows=1024)
    rows = np.random.default_rng(0).normal(size=(1024, 6)).astype(np.float32)
    for bucket in (64, 128, 512, 1024):
        engine.compile(Kind.ACT, bucket)
    assert (engine.compilations, engine.unsplit) == (4, unsplit)
    together = engine.compute(Kind.ACT, rows)
    for bucket in (64, 128, 512):
        np.testing.assert_allclose(engine.compute(Kind.ACT, rows[:bucket]), together[:bucket], atol=1e-6)


def test_the_environment_is_left_as_it_was(asked_anew: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PJRT_NPROC", "3")
    assert cores.calling_thread() is cores.calling_thread()
    assert os.environ["PJRT_NPROC"] == "3"
    monkeypatch.delenv("PJRT_NPROC")
    cores.calling_thread.cache_clear()
    cores.calling_thread()
    assert "PJRT_NPROC" not in os.environ


def test_an_accelerator_has_no_such_device(asked_anew: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert cores.calling_thread() is None
