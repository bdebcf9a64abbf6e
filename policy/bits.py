"""Compute with 32 bits in a program that has enabled 64: policies are float32, but JAX follows the program."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def in_32_bits(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Let `function` compute with 32 bits, whatever `jax_enable_x64` is. Other threads are not affected."""

    @functools.wraps(function)
    def wrapped(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        with jax.enable_x64(False):
            return function(*args, **kwargs)

    return wrapped
