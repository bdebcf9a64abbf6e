"""The exceptions of the client, as a tree, and their meaning.

KilolayerError
  RequestError         the request is wrong: sent again unchanged, it fails again
    InvalidRequest       sizes, shapes or values that do not fit the policy
    PolicyNotFound       no policy or version of that name
    NotSupported         the policy cannot do this, for example score actions without a critic
    AccessDenied         the server requires other credentials
  ServerError          the server has a problem: the next observation may succeed
    Overloaded           the server rejected the call because of its load
    Unavailable          no server at the address, it is starting or draining, or a stream broke
    ServerFailure        the server failed while it worked on the call
    BadReply             the reply does not belong to the request, or breaks the contract
  DeadlineExceeded     no reply in time
  ClientClosed         the client, the stream or the local policy was closed

InvalidExport, a ValueError: a folder that LocalPolicy cannot use
"""
# ruff: noqa: N818 - as in httpx, a name says what happened; the base class says that it is an error

from __future__ import annotations

from typing import Any


class KilolayerError(Exception):
    """A call failed. The message says what happened and what to try. It can be copied and pickled.

    Attributes:
        status: name of the gRPC status, such as `"RESOURCE_EXHAUSTED"`.
        reason: the server's reason in one word, such as `"queue_full"`; protos/kilolayer/v1/policy.proto lists them.
            Empty if the server gave none, or if the failure was found by the client or the connection.
    """

    _details: str = ""  # what happened, in the words of the server or of gRPC, without an advice

    def __init__(self, message: str, *, status: str, reason: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        # Python's own way calls the class with the message alone, without the status that it requires.
        return _restore, (type(self), self.args), self.__dict__


def _restore(kind: type[KilolayerError], arguments: tuple[Any, ...]) -> KilolayerError:
    """Return an exception without calling its constructor; copy and pickle set its fields."""
    return kind.__new__(kind, *arguments)


class RequestError(KilolayerError):
    """The request is wrong: sent again unchanged, it fails again."""


class InvalidRequest(RequestError):
    """Sizes, shapes or values do not fit the policy; found by the server, or by the client before sending."""


class PolicyNotFound(RequestError):
    """The server has no policy, or no version, of that name."""


class NotSupported(RequestError):
    """The policy cannot do what the request asks, for example score actions without a critic."""


class AccessDenied(RequestError):
    """The server requires other credentials."""


class ServerError(KilolayerError):
    """The server has a problem: the next observation may succeed."""


class Overloaded(ServerError):
    """The server rejected the call because of its load."""


class Unavailable(ServerError):
    """No server answers at the address, it is starting or draining, or a stream broke."""


class ServerFailure(ServerError):
    """The server failed while it worked on the call, or does not know the call."""


class BadReply(ServerError):
    """The reply does not belong to the request or breaks the contract. Its action must not be used."""


class DeadlineExceeded(KilolayerError):
    """No reply came in time. The server may or may not have worked on the call."""


class ClientClosed(KilolayerError):
    """The client, the stream or the local policy was closed before or during the call."""


class InvalidExport(ValueError):
    """The folder of an exported policy is damaged, or does not give the actions of the policy on this machine."""
