"""Names of devices, on a machine that may have accelerators or not."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from policy.bundle import Bundle
from serving.engine.cpu_device import calling_thread_device
from serving.engine.devices import Device, find_device
from serving.engine.engine import Engine, Kind
from serving.errors import StartupError

GPUS = ["first GPU", "second GPU"]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX can use two GPUs, and no TPU."""

    def devices(kind: str = "gpu") -> list[str]:
        if kind != "gpu":
            raise RuntimeError(f"Unknown backend: {kind}")
        return GPUS

    monkeypatch.setattr("serving.engine.devices.jax", SimpleNamespace(devices=devices, default_backend=lambda: "gpu"))


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(("name", "device"), [("", GPUS[0]), ("gpu", GPUS[0]), ("gpu:0", GPUS[0]), ("gpu:1", GPUS[1])])
def test_an_accelerator_has_an_index_and_the_first_one_is_the_default(name: str, device: str) -> None:
    assert find_device(name) == Device(device, is_calling_thread=False)


@pytest.mark.usefixtures("gpus")
def test_the_cpu_is_there_beside_accelerators() -> None:
    assert find_device("cpu") == Device(calling_thread_device(), is_calling_thread=True)


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize("name", ["gpu:2", "tpu"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(StartupError, match=f"device {name}; there are: cpu, gpu:0, gpu:1$"):
        find_device(name)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="there is an accelerator")
def test_without_an_accelerator_the_cpu_is_the_default() -> None:
    assert find_device("") == Device(calling_thread_device(), is_calling_thread=True)
    with pytest.raises(StartupError, match="JAX cannot use the device gpu:0; there are: cpu$"):
        find_device("gpu:0")


def test_an_engine_computes_on_its_device(served_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    other = jax.devices("cpu")[0]  # not the one that computes on the calling thread
    rows = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    results: list[np.ndarray] = []
    for device in (calling_thread_device(), other):
        monkeypatch.setattr("serving.engine.engine.find_device", lambda _, found=device: Device(found, False))
        engine = Engine(served_bundle.params, served_bundle.spec, max_rows=4)
        built = engine.build(Kind.ACT, 4)
        assert {array.device for array in built.arrays} == {device}
        engine.add(built)
        results.append(engine.compute(Kind.ACT, rows))
    np.testing.assert_allclose(results[0], results[1], atol=1e-5)
