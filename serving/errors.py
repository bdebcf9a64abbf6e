"""Every error that a client or an operator can see, each with its gRPC status and a machine-readable reason.

This is the only place that maps errors to statuses. A transport sends the status, the message and the trailing metadata
of a `ServingError`. The message reaches a client, so it is always our own text, never that of another library's error.
It says what happened. What to do about it depends on the caller: a client adds that, by the reason.
"""

import enum
import errno
import os
from typing import Any

# In messages of libraries: the system's own, the dynamic linker's, XLA's.
_NO_MEMORY = (os.strerror(errno.ENOMEM), "failed to map segment from shared object", "RESOURCE_EXHAUSTED")
_NO_TEMPORARY_FOLDER = "No usable temporary directory"  # of Python's tempfile
_ECHO_LENGTH = 64  # characters of a client's text that are repeated in a message or a log
_NO_RETRY = ("grpc-retry-pushback-ms", "-1")  # asks gRPC's own retry mechanism not to send an old observation again


class Status(enum.IntEnum):
    """The gRPC status codes that the server uses, with gRPC's own numbers."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    INTERNAL = 13
    UNAVAILABLE = 14


class Reason(enum.StrEnum):
    """Why a request got no answer, for programs. Clients depend on these words: they never change."""

    QUEUE_FULL = "queue_full"
    QUEUE_AGE = "queue_age"
    DEADLINE_TOO_SHORT = "deadline_too_short"
    MEMORY_LIMIT = "memory_limit"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    DRAINING = "draining"
    NOT_READY = "not_ready"
    UNKNOWN_POLICY = "unknown_policy"
    UNKNOWN_VERSION = "unknown_version"
    INVALID_REQUEST = "invalid_request"
    OUT_OF_RANGE = "out_of_range"
    EXTREME_INPUT = "extreme_input"
    NO_CRITIC = "no_critic"
    NON_FINITE_ACTION = "non_finite_action"
    COMPUTATION_FAILED = "computation_failed"
    COMPUTATION_TIMEOUT = "computation_timeout"
    INTERNAL = "internal"
    # of changes of the versions that are served
    VERSION_REFUSED = "version_refused"
    NO_PREVIOUS = "no_previous"
    VERSION_IS_LIVE = "version_is_live"
    FIXED_VERSION = "fixed_version"
    BUSY = "busy"


REJECTION_REASONS = (Reason.QUEUE_FULL, Reason.QUEUE_AGE, Reason.DEADLINE_TOO_SHORT)
"""The reasons of an `OverloadedError`."""

_DEPLOYMENT_STATUSES = {
    Reason.UNKNOWN_POLICY: Status.NOT_FOUND,
    Reason.UNKNOWN_VERSION: Status.NOT_FOUND,
    Reason.VERSION_REFUSED: Status.FAILED_PRECONDITION,
    Reason.NO_PREVIOUS: Status.FAILED_PRECONDITION,
    Reason.VERSION_IS_LIVE: Status.FAILED_PRECONDITION,
    Reason.FIXED_VERSION: Status.FAILED_PRECONDITION,
    Reason.BUSY: Status.ABORTED,  # it may be repeated; RESOURCE_EXHAUSTED tells clients not to
}
DEPLOYMENT_REASONS = tuple(_DEPLOYMENT_STATUSES)
"""The reasons of a `DeploymentError`."""


class StartupError(Exception):
    """The server cannot start. The message is one line that says what to do."""


class BucketError(StartupError):
    """A bucket with policies cannot be read now."""


class ProbeError(StartupError):
    """A policy, compiled for this machine, does not give the results that were stored with it."""


class RefusedVersionError(Exception):
    """A version that must not be served. `reason` is one word for metrics; the message is one line.

    `detail` says what is wrong, without the version's path, for lines that name the version and the reason.
    """

    def __init__(self, reason: str, message: str, *, detail: str = "") -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.detail = detail or message

    def __str__(self) -> str:
        return str(self.args[1])


class BrokenError(Exception):
    """The server cannot compute any more and must be replaced by a new process. The message is one line."""


class ServingError(Exception):
    """A request that gets no answer. The client receives `status`, the message and `trailers`."""

    status: Status = Status.INTERNAL
    reason: Reason = Reason.INTERNAL

    @property
    def trailers(self) -> tuple[tuple[str, str], ...]:
        """Trailing metadata for the client: the reason, and a request not to try again if the server is overloaded."""
        retry = (_NO_RETRY,) if self.status is Status.RESOURCE_EXHAUSTED else ()
        return (("kilolayer-reason", self.reason.value), *retry)

    def __reduce__(self) -> tuple[Any, ...]:
        # Python's own way calls the class with the message alone, and some classes take other arguments.
        return _restore, (type(self), self.args), self.__dict__


def _restore(kind: type[ServingError], arguments: tuple[Any, ...]) -> ServingError:
    """Return an exception without calling its constructor; copy and pickle set its fields."""
    return kind.__new__(kind, *arguments)


class InvalidRequestError(ServingError):
    """The request does not fit the policy. The message says what was expected and what was received."""

    status = Status.INVALID_ARGUMENT
    reason = Reason.INVALID_REQUEST


class OutOfRangeError(InvalidRequestError):
    """A state is far from those that the policy saw in training, and the server refuses such states."""

    reason = Reason.OUT_OF_RANGE


class ExtremeInputError(InvalidRequestError):
    """The policy gave NaN or infinity for an input that is far from those that it saw in training."""

    reason = Reason.EXTREME_INPUT


class NoCriticError(ServingError):
    """The request needs a critic, and the policy has none."""

    status = Status.FAILED_PRECONDITION
    reason = Reason.NO_CRITIC


class NotFoundError(ServingError):
    """The server does not serve what the request names. The message lists what it serves."""

    status = Status.NOT_FOUND


class UnknownPolicyError(NotFoundError):
    """There is no policy of that name."""

    reason = Reason.UNKNOWN_POLICY


class UnknownVersionError(NotFoundError):
    """The policy has no such version."""

    reason = Reason.UNKNOWN_VERSION


class OverloadedError(ServingError):
    """The request is rejected for load, for one of `REJECTION_REASONS`."""

    status = Status.RESOURCE_EXHAUSTED

    def __init__(self, message: str, *, reason: Reason) -> None:
        super().__init__(message)
        self.reason = reason


class MemoryLimitError(ServingError):
    """The server holds too many bytes for the connection: requests under way, and replies that are not sent yet."""

    status = Status.RESOURCE_EXHAUSTED
    reason = Reason.MEMORY_LIMIT


class DeploymentError(ServingError):
    """A change of the versions that are served is refused, for one of `DEPLOYMENT_REASONS`."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.status = _DEPLOYMENT_STATUSES.get(reason, Status.INTERNAL)


class DeadlinePassedError(ServingError):
    """The caller's deadline passed, or could not be met any more, before the request was computed."""

    status = Status.DEADLINE_EXCEEDED
    reason = Reason.DEADLINE_EXCEEDED


class UnavailableError(ServingError):
    """The server takes no requests now; another one may."""

    status = Status.UNAVAILABLE


class DrainingError(UnavailableError):
    """The server is shutting down."""

    reason = Reason.DRAINING

    def __init__(self, message: str = "the server is shutting down") -> None:
        super().__init__(message)


class NotReadyError(UnavailableError):
    """The server is still compiling its policies."""

    reason = Reason.NOT_READY


class ComputationError(ServingError):
    """The policy could not be computed for this request."""

    reason = Reason.COMPUTATION_FAILED


class ComputationTimeoutError(ComputationError):
    """The computation did not end within --max-compute-s. The server stops, so that a new process replaces it."""

    reason = Reason.COMPUTATION_TIMEOUT


class NonFiniteActionError(ComputationError):
    """The policy gave NaN or infinity for this request."""

    reason = Reason.NON_FINITE_ACTION


class UnexpectedError(ServingError):
    """A bug in the server. The log has the details; the client gets none."""

    def __init__(self) -> None:
        super().__init__("the server failed on this call; its log says why")


def echo(text: str) -> str:
    """Return a client's text quoted, in ASCII, on one line and cut short, so that messages and logs can hold it."""
    return ascii(text if len(text) <= _ECHO_LENGTH else text[:_ECHO_LENGTH] + "...")


def shortage(error: BaseException) -> str:
    """Return the resource that the machine lacks, if `error` or one of its causes says so; empty otherwise.

    Such an error says nothing about the policy or the flag that was being handled when it was raised.
    """
    chain: list[BaseException] = []
    while error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__ or error
    return next(filter(None, map(_shortage, chain)), "")


def _shortage(error: BaseException) -> str:
    number, text = getattr(error, "errno", None), str(error)
    if number in (errno.EMFILE, errno.ENFILE) or os.strerror(errno.EMFILE) in text:
        return "too few file descriptors (ulimit -n)"
    if "can't start new thread" in text or number == errno.EAGAIN:
        return "too little memory or too few processes to start a thread (ulimit -v, ulimit -u, the container's limits)"
    if isinstance(error, MemoryError) or number == errno.ENOMEM or any(mark in text for mark in _NO_MEMORY):
        return "too little memory (ulimit -v, the container's limit)"
    if number in (errno.ENOSPC, errno.EDQUOT) or _NO_TEMPORARY_FOLDER in text:
        return "too little free space on the disk, or no folder for temporary files (TMPDIR)"
    return ""
