"""How large the requests of a server may be."""

import math
from collections.abc import Iterable

from policy.spec import PolicySpec
from serving.config import ServeConfig
from serving.errors import StartupError

_GRPC_MAX_BYTES = 2**31 - 1  # of a message
_MESSAGE_BYTES = 65536  # of a request in addition to its rows: names, tags, fields of later versions
# A float32 is 4 bytes packed and 5 unpacked. With 8, calls with slightly too many rows get our own, clearer error.
_MAX_VALUE_BYTES = 8
_MIN_HELD_REQUESTS = 4  # of the largest size, so that one connection may hold a request and its reply


def limit(specs: Iterable[PolicySpec], config: ServeConfig) -> int:
    """Return the bytes that a request of any of the policies may have.

    Raises:
        StartupError: gRPC cannot take so many, or --max-held-mb is too small for them.
    """
    row_dim = max(spec.state_dim + spec.goal_dim + spec.chunk_dim for spec in specs)
    most = config.max_call_rows * row_dim * _MAX_VALUE_BYTES + _MESSAGE_BYTES
    if most > _GRPC_MAX_BYTES:
        raise StartupError(
            f"requests of {config.max_call_rows} rows can have {most} bytes, and gRPC takes at most {_GRPC_MAX_BYTES};"
            " use a smaller --max-call-rows"
        )
    if config.max_held_mb << 20 < _MIN_HELD_REQUESTS * most:
        needed = math.ceil(_MIN_HELD_REQUESTS * most / 2**20)
        raise StartupError(
            f"--max-held-mb {config.max_held_mb} is too small for requests of {config.max_call_rows} rows; use at"
            f" least {needed}, or a smaller --max-call-rows"
        )
    return most
