"""What can go wrong, each error with the gRPC status that it becomes: the one place that maps errors to statuses.

The text of a `ServingError` is sent to a client, so it is always ours, never that of a foreign exception.
"""

from typing import ClassVar

import grpc

_ECHO_LENGTH = 64  # characters of a client's text that come back in a message or a log


class StartupError(Exception):
    """The server cannot start. The message is one line that says what to do."""


class ServingError(Exception):
    """A call that gets no answer; `status` and `trailers` are what its caller receives besides the message."""

    status: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    trailers: ClassVar[tuple[tuple[str, str], ...]] = ()


class InvalidRequestError(ServingError):
    """The request does not fit the policy; the message names what was expected and what came."""

    status = grpc.StatusCode.INVALID_ARGUMENT


class NotFoundError(ServingError):
    """No policy or version of that name; the message lists those there are."""

    status = grpc.StatusCode.NOT_FOUND


class OverloadedError(ServingError):
    """The queue is full."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED
    # A late action is worthless: this tells gRPC's own retries to send no observation twice.
    trailers = (("grpc-retry-pushback-ms", "-1"),)


class DeadlinePassedError(ServingError):
    """The caller's deadline passed before its rows were computed."""

    status = grpc.StatusCode.DEADLINE_EXCEEDED


class UnavailableError(ServingError):
    """The server is starting or draining."""

    status = grpc.StatusCode.UNAVAILABLE


class ComputationError(ServingError):
    """The policy failed on this batch, or gave an action that is not finite for this call."""


class UnexpectedError(ServingError):
    """Something of ours broke; the log holds the details, the client gets none."""

    def __init__(self) -> None:
        super().__init__("the server failed on this call; its log says why")


def echo(text: str) -> str:
    """A client's text, quoted, in plain ASCII on one line, and cut short: safe in a message and in a log."""
    return ascii(text if len(text) <= _ECHO_LENGTH else text[:_ECHO_LENGTH] + "...")
