"""The device that computes a policy, found by its name in the settings."""

import dataclasses
from typing import Any

import jax

from serving.engine.cpu_device import calling_thread_device
from serving.errors import StartupError


@dataclasses.dataclass(frozen=True)
class Device:
    """A device that computes batches."""

    jax_device: Any
    is_calling_thread: bool  # it computes on the thread that calls it, so several threads compute at the same time


def find_device(name: str) -> Device:
    """Return the device with this name.

    Args:
        name: cpu, or the kind of an accelerator and its index from 0, such as gpu:1; without an index the first one.
            Empty: the first accelerator that JAX can use, or else the CPU.

    Raises:
        StartupError: JAX cannot use such a device; the message lists the others.
    """
    kind, _, index = (name or jax.default_backend()).partition(":")
    if kind == "cpu":
        return Device(calling_thread_device(), is_calling_thread=True)
    try:
        found = jax.devices(kind)
    except RuntimeError as error:
        raise StartupError(f"JAX cannot use the device {name}; there are: {_names()}") from error
    if int(index or 0) >= len(found):
        raise StartupError(f"there is no device {name}; there are: {_names()}")
    return Device(found[int(index or 0)], is_calling_thread=False)


def _names() -> str:
    kind = jax.default_backend()
    accelerators = [f"{kind}:{index}" for index in range(len(jax.devices()))] if kind != "cpu" else []
    return ", ".join(["cpu", *accelerators])
