"""Everything that the client raises, as a tree, and the one place that turns a gRPC status into it.

KilolayerError
  RequestError         the request is at fault: unchanged, it fails again
    InvalidRequest       sizes, shapes or values that do not fit the policy
    PolicyNotFound       no policy or version of that name
    AccessDenied         the server wants other credentials
  ServerError          the server is at fault: the next observation may succeed
    Overloaded           the server shed the call because its queue was full
    Unavailable          no server there, it is starting or draining, or a stream broke
    ServerFailure        the server failed while it worked on the call
    BadReply             the reply does not belong to the request, or breaks the contract
  DeadlineExceeded     no answer in time
  ClientClosed         the client or the stream was closed
"""
# ruff: noqa: N818 - as in httpx, a name says what happened; the base class says that it is an error

import grpc


class KilolayerError(Exception):
    """A call that gave no answer. `status` is the gRPC status name; the message says what happened and what to try."""

    def __init__(self, message: str, *, status: str) -> None:
        super().__init__(message)
        self.status = status


class RequestError(KilolayerError):
    """The request is at fault: sent again unchanged, it fails again."""


class InvalidRequest(RequestError):
    """Sizes, shapes or values do not fit the policy; found by the server, or by the client before sending."""


class PolicyNotFound(RequestError):
    """The server has no policy, or no version, of that name."""


class AccessDenied(RequestError):
    """The server wants other credentials."""


class ServerError(KilolayerError):
    """The server is at fault: the next observation may succeed."""


class Overloaded(ServerError):
    """The server shed the call because its queue was full."""


class Unavailable(ServerError):
    """No server answers at the address, it is starting or draining, or a stream broke."""


class ServerFailure(ServerError):
    """The server failed while it worked on the call, or does not know the call."""


class BadReply(ServerError):
    """The reply does not belong to the request or breaks the contract, so its action must not be used."""


class DeadlineExceeded(KilolayerError):
    """No answer came in time; whether the server worked on the call is unknown."""


class ClientClosed(KilolayerError):
    """The client or the stream was closed before or during the call."""


_Meaning = tuple[type[KilolayerError], str]

_SERVER_FAILED: _Meaning = (ServerFailure, "The server's log says more")
_MEANING: dict[grpc.StatusCode, _Meaning] = {
    grpc.StatusCode.INVALID_ARGUMENT: (InvalidRequest, "describe() gives the sizes and the row limit"),
    grpc.StatusCode.OUT_OF_RANGE: (InvalidRequest, "describe() gives the sizes and the row limit"),
    grpc.StatusCode.NOT_FOUND: (PolicyNotFound, "list_policies() gives the names and versions"),
    grpc.StatusCode.UNAUTHENTICATED: (AccessDenied, "Ask whoever runs the server for access"),
    grpc.StatusCode.PERMISSION_DENIED: (AccessDenied, "Ask whoever runs the server for access"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (Overloaded, "Send the next observation, not this one again"),
    grpc.StatusCode.UNAVAILABLE: (Unavailable, "Check the address, or send the next observation in a moment"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (DeadlineExceeded, "Send the next observation, or allow more time"),
    grpc.StatusCode.UNIMPLEMENTED: (ServerFailure, "Check that a Kilolayer server of this version is at the address"),
}
_TOO_LARGE: _Meaning = (InvalidRequest, "Send fewer rows at once")


def from_status(code: grpc.StatusCode, details: str, *, call: str) -> KilolayerError:
    """The exception of this tree that a status stands for; `call` names the call and the server in its message."""
    kind, advice = _MEANING.get(code, _SERVER_FAILED)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "message larger than max" in details:
        kind, advice = _TOO_LARGE  # gRPC says so with the status of a shed call; only the details tell them apart
    reason = details.rstrip(".") or "no details"
    return kind(f"{call} failed ({code.name}): {reason}. {advice}.", status=code.name)
