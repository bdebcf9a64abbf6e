"""What a policy is: everything that training writes and serving reads.

`policy.load(folder)` returns a published policy to act with. It is imported on first use, because it needs JAX.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from policy.loaded import LoadedPolicy, load

__all__ = ["LoadedPolicy", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from policy import loaded

    return getattr(loaded, name)
