"""What our programs rely on in JAX, whatever variables the shell has, and why JAX has no device.

JAX reads variables such as JAX_ENABLE_X64 when it is imported. With other values than these, the same parameters give
other actions, and random keys other numbers.
"""

import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

_RELIED_ON: dict[str, Any] = {
    "jax_enable_x64": False,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    "jax_legacy_prng_key": "allow",
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_disable_jit": False,
}
_LOCK = "requirements/cuda13.txt"
_CUDA_PLUGIN = "jax_cuda13_plugin"


def apply() -> str:
    """Set in JAX what our programs rely on. Call it before anything is computed.

    Returns:
        A warning that names the variables that have no effect; empty if there are none.
    """
    changed = [name for name, value in _RELIED_ON.items() if _as_text(getattr(jax.config, name)) != _as_text(value)]
    for name in changed:
        jax.config.update(name, _RELIED_ON[name])
    if not changed:
        return ""
    variables = ", ".join(f"{name.upper()}={os.environ.get(name.upper(), '')}" for name in changed)
    return f"ignoring {variables}: this program sets it itself"


def _as_text(value: Any) -> str:
    return str(getattr(value, "value", value)).lower()  # some settings are members of an enum


def device_problem(environ: Mapping[str, str] = os.environ, *, devices: Callable[[], object] = jax.devices) -> str:
    """Start JAX's devices, and return why there are none, in one line; empty if there are.

    Args:
        environ: environment variables.
        devices: starts them.
    """
    try:
        devices()
    except (AssertionError, RuntimeError) as error:
        asked = environ.get("JAX_PLATFORMS", "")
        if not {"cuda", "gpu"} & set(asked.split(",")):
            detail = str(error).splitlines()[0] if str(error) else type(error).__name__
            return f"JAX has no device (JAX_PLATFORMS={asked}): {detail}"
        return f"JAX_PLATFORMS={asked} asks for an NVIDIA GPU, and JAX cannot use one: {_missing_for_cuda()}"
    return ""


def _missing_for_cuda() -> str:
    without = "unset JAX_PLATFORMS to use the CPU"
    if importlib.util.find_spec(_CUDA_PLUGIN) is None:
        return f"its CUDA plugin is not installed; install {_LOCK}, or {without}"
    if not Path("/dev/nvidiactl").exists():
        return f"this machine has no NVIDIA driver; install one, or {without}"
    return f"the driver does not work, or is older than CUDA 13 needs; check it with nvidia-smi, or {without}"
