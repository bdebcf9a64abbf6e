"""Settings of JAX that a shell has changed, and devices that JAX cannot start."""

from collections.abc import Callable, Generator

import jax
import jax.numpy as jnp
import pytest

from policy import jax_settings


@pytest.fixture
def x64() -> Generator[None]:
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.mark.usefixtures("x64")
def test_a_setting_of_the_shell_is_taken_back_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_ENABLE_X64", "1")
    assert jnp.zeros(1).dtype == jnp.float64
    assert jax_settings.apply() == "ignoring JAX_ENABLE_X64=1: this program sets it itself"
    assert jnp.zeros(1).dtype == jnp.float32


def test_jax_as_it_comes_has_every_setting() -> None:
    assert jax_settings.apply() == ""


def raising(error: Exception) -> Callable[[], object]:
    def start() -> None:
        raise error

    return start


def test_a_gpu_that_jax_cannot_use_is_one_line_with_what_to_install() -> None:
    asked = {"JAX_PLATFORMS": "cuda"}
    problem = jax_settings.device_problem(asked, devices=raising(AssertionError()))
    assert problem.startswith("JAX_PLATFORMS=cuda asks for an NVIDIA GPU, and JAX cannot use one: ")
    assert problem.endswith(", or unset JAX_PLATFORMS to use the CPU")


def test_another_error_of_a_device_has_its_first_line() -> None:
    error = RuntimeError("Unable to initialize backend 'tpus': not in the list.\nAnd more.")
    problem = jax_settings.device_problem({"JAX_PLATFORMS": "tpus"}, devices=raising(error))
    assert problem == "JAX has no device (JAX_PLATFORMS=tpus): Unable to initialize backend 'tpus': not in the list."
    assert jax_settings.device_problem({}, devices=lambda: None) == ""
