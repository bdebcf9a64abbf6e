"""What the programs rely on in JAX: settings that a shell may have changed, and the devices that it was asked for.

A program calls `set_up` first, and `require_devices` before it computes. A function that must also work in another
program, whatever that program has set, is decorated with `in_32_bits`.
"""

import functools
from collections.abc import Callable
from importlib import metadata
from typing import Any, ParamSpec, TypeVar

import jax

# The defaults of JAX, which environment variables may change. Other types and other random numbers would give other
# policies, or none. Settings for debugging, such as JAX_DEBUG_NANS, and JAX_DEFAULT_MATMUL_PRECISION stay as they are.
_SETTINGS: dict[str, object] = {
    "jax_enable_x64": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
}
_GPU_LOCK = "requirements/cuda13.txt"
_GPU_PLATFORMS = frozenset({"cuda", "gpu"})
_GPU_PLUGINS = ("jax-cuda13-plugin", "jax-cuda12-plugin")

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class DeviceError(Exception):
    """JAX has no device of the platform that JAX_PLATFORMS asks for."""


def set_up() -> list[str]:
    """Set what the programs rely on in JAX, for the whole process.

    Returns:
        A line for each setting of the shell that is not used.
    """
    changed = {name: value for name in _SETTINGS if (value := jax.config.values[name]) != _SETTINGS[name]}
    for name in changed:
        jax.config.update(name, _SETTINGS[name])
    return [
        f"{name.upper()}={value} is not used: this program needs {_SETTINGS[name]}" for name, value in changed.items()
    ]


def require_devices() -> list[Any]:
    """Return the devices that JAX computes on.

    Raises:
        DeviceError: there is none of the platform that JAX_PLATFORMS asks for.
    """
    try:
        return jax.local_devices()
    except (
        AssertionError,
        RuntimeError,
    ) as error:  # JAX 0.10 fails with a bare assertion if its CUDA plugin is missing
        raise DeviceError(_explanation(str(jax.config.values["jax_platforms"]), str(error))) from error


def in_32_bits(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Let `function` compute with 32 bits, even if the program around it has enabled 64."""

    @functools.wraps(function)
    def wrapped(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        with jax.enable_x64(False):
            return function(*args, **kwargs)

    return wrapped


def _explanation(asked: str, reason: str) -> str:
    """Return what was asked for, what was found, and what to install."""
    found, otherwise = f"JAX_PLATFORMS is {asked!r}, but JAX finds only the CPU here", "or set JAX_PLATFORMS=cpu"
    reason = _one_line(reason)
    if _GPU_PLATFORMS.isdisjoint(asked.split(",")):
        return f"{found} ({reason}); choose a platform that this machine has, {otherwise}"
    if not any(map(_is_installed, _GPU_PLUGINS)):
        return f"{found}: its CUDA libraries are not installed; install {_GPU_LOCK} (docs/training.md), {otherwise}"
    return f"{found} ({reason or 'no reason given'}); see whether nvidia-smi lists a GPU, {otherwise}"


def _one_line(reason: str) -> str:
    return " ".join(reason.partition(" (set JAX_PLATFORMS")[0].split())[:200].rstrip(".")


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
