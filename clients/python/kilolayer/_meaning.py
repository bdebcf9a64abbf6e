"""What a gRPC status means: the exception, the advice, and the sentence; for a served and for a local policy."""

from __future__ import annotations

import grpc

from kilolayer._advice import advice as advice_for
from kilolayer.errors import (
    AccessDenied,
    DeadlineExceeded,
    InvalidRequest,
    KilolayerError,
    NotSupported,
    Overloaded,
    PolicyNotFound,
    ServerFailure,
    Unavailable,
)

LATE_REPLY = "the reply came too late"
_MAX_TIMEOUT_S = 1e9

_LOOK_AT_SERVER_LOG = (ServerFailure, "The server's log says more")
_EXCEPTIONS: dict[grpc.StatusCode, tuple[type[KilolayerError], str]] = {
    grpc.StatusCode.INVALID_ARGUMENT: (InvalidRequest, "describe() gives the sizes and the row limit"),
    grpc.StatusCode.OUT_OF_RANGE: (InvalidRequest, "describe() gives the sizes and the row limit"),
    grpc.StatusCode.NOT_FOUND: (PolicyNotFound, "list_policies() gives the names and versions"),
    grpc.StatusCode.FAILED_PRECONDITION: (NotSupported, "describe().critic says whether the policy has a critic"),
    grpc.StatusCode.UNAUTHENTICATED: (AccessDenied, "Ask the server's operator for access"),
    grpc.StatusCode.PERMISSION_DENIED: (AccessDenied, "Ask the server's operator for access"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (Overloaded, "Send the next observation, not this one again"),
    grpc.StatusCode.UNAVAILABLE: (Unavailable, "Check the address, or send the next observation in a moment"),
    # A server that is just stopping cancels calls that arrive.
    grpc.StatusCode.CANCELLED: (Unavailable, "Send the next observation in a moment"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (DeadlineExceeded, "Send the next observation, or allow more time"),
    grpc.StatusCode.UNIMPLEMENTED: (ServerFailure, "Check that a Kilolayer server of this version is at the address"),
}
_CHECK_BEST_OF = (
    InvalidRequest,
    "describe() gives the sizes and the row limit; best_of is the number of candidates, and each counts as a row",
)


def meaning(
    method: str, code: grpc.StatusCode, *, reason: str, has_candidates: bool
) -> tuple[type[KilolayerError], str]:
    """Return the class of the exception, and what to do, for a call of `method` that failed.

    Args:
        method: of the service.
        code: the status.
        reason: the server's, in one word, or empty.
        has_candidates: whether the request was for the best of several actions.
    """
    kind, advice = _EXCEPTIONS.get(code, _LOOK_AT_SERVER_LOG)
    specific = advice_for(method, status=code.name, reason=reason)
    if kind is InvalidRequest and not specific and has_candidates:
        return _CHECK_BEST_OF
    return kind, specific or advice


def sentence(call: str, code: grpc.StatusCode, *, timeout_s: float, happened: str, advice: str) -> str:
    """Return the message of the exception for `call`, such as `Act at HOST:PORT`."""
    return f"{call} failed ({code.name}, timeout {timeout_s:g} s): {happened}. {advice}."


def check_timeout(timeout_s: float) -> float:
    """Return `timeout_s`. ValueError if it is not a positive number."""
    if not 0 < timeout_s < _MAX_TIMEOUT_S:
        raise ValueError(f"timeout_s must be a positive number of seconds, such as 0.05, got {timeout_s}")
    return timeout_s
