"""What a shell may set in JAX, and a platform that is not there."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from policy import bundle, jax_runtime
from policy.jax_runtime import DeviceError
from policy.networks import PolicyParams
from policy.spec import PolicySpec
from tests.policy.bundles import publish

ROOT = Path(__file__).parents[2]
CHANGED = {
    "jax_enable_x64": True,
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_default_prng_impl": "rbg",
    "jax_threefry_partitionable": False,
    "jax_random_seed_offset": 3,
}


@pytest.fixture
def another_shell() -> Iterator[None]:
    before = {name: jax.config.values[name] for name in CHANGED}
    for name, value in CHANGED.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_a_program_computes_the_same_whatever_the_shell_has_set(request: pytest.FixtureRequest) -> None:
    drawn = np.asarray(jax.random.normal(jax.random.key(5), (3,)))
    request.getfixturevalue("another_shell")
    assert jax.random.key_data(jax.random.key(5)).shape == (4,)  # of another generator
    lines = jax_runtime.set_up()
    assert sorted(line.partition("=")[0] for line in lines) == sorted(name.upper() for name in CHANGED)
    assert "JAX_ENABLE_X64=True is not used: this program needs False" in lines
    np.testing.assert_array_equal(jax.random.normal(jax.random.key(5), (3,)), drawn)
    assert (jnp.arange(2) + jnp.ones((2, 2)) * jnp.ones(2)).dtype == jnp.float32  # neither types nor ranks are refused
    assert jax_runtime.set_up() == []


def test_a_policy_is_published_and_read_in_a_program_with_64_bits(
    tmp_path: Path, published: Path, spec: PolicySpec, params: PolicyParams
) -> None:
    expected = bundle.read(published / "200").params
    with jax.enable_x64(True):
        read = bundle.read(publish(tmp_path, 1, spec=spec, params=params)).params
        assert bundle.read(published / "200").version == 200
    for ours, theirs in zip(jax.tree.leaves(read), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == np.float32


@pytest.mark.skipif(any(map(jax_runtime._is_installed, jax_runtime._GPU_PLUGINS)), reason="JAX has its CUDA plugin")  # pyright: ignore[reportPrivateUsage]
def test_a_platform_that_is_not_there_is_one_line_with_the_lock_to_install() -> None:
    """JAX itself fails with an assertion without a message."""
    code = (
        "from policy import jax_runtime\n"
        "try: jax_runtime.require_devices()\n"
        "except jax_runtime.DeviceError as error: print(error)"
    )
    environ = os.environ | {"JAX_PLATFORMS": "cuda", "PYTHONPATH": str(ROOT)}
    told = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True).stdout
    assert told == (
        "JAX_PLATFORMS is 'cuda', but JAX finds only the CPU here: its CUDA libraries are not installed; install "
        "requirements/cuda13.txt (docs/training.md), or set JAX_PLATFORMS=cpu\n"
    )
    assert (ROOT / "requirements/cuda13.txt").is_file()


def refusal(monkeypatch: pytest.MonkeyPatch, asked: str, error: Exception, *, plugin: bool) -> str:
    def fail() -> None:
        raise error

    monkeypatch.setattr(jax, "local_devices", fail)
    monkeypatch.setattr(jax_runtime, "_is_installed", lambda _: plugin)
    before = jax.config.values["jax_platforms"]
    jax.config.update("jax_platforms", asked)
    try:
        with pytest.raises(DeviceError) as refused:
            jax_runtime.require_devices()
    finally:
        jax.config.update("jax_platforms", before)
    return str(refused.value)


def test_the_reason_of_a_driver_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("Unable to initialize backend 'cuda': no driver.\n (set JAX_PLATFORMS='' to choose)")
    assert refusal(monkeypatch, "cuda,tpu", error, plugin=True) == (
        "JAX_PLATFORMS is 'cuda,tpu', but JAX finds only the CPU here (Unable to initialize backend 'cuda': no "
        "driver); see whether nvidia-smi lists a GPU, or set JAX_PLATFORMS=cpu"
    )


def test_another_platform_needs_no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(monkeypatch, "tpu", RuntimeError("no libtpu.so"), plugin=False) == (
        "JAX_PLATFORMS is 'tpu', but JAX finds only the CPU here (no libtpu.so); choose a platform that this machine "
        "has, or set JAX_PLATFORMS=cpu"
    )
