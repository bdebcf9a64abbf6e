"""Errors: what a client receives of each, by status and by the reason for programs."""

import errno
import os
import re
from pathlib import Path

import grpc
import pytest

from serving import errors
from serving.errors import (
    DEPLOYMENT_REASONS,
    REJECTION_REASONS,
    DeploymentError,
    OverloadedError,
    Reason,
    ServingError,
    Status,
    echo,
    shortage,
)

TABLE = {
    errors.InvalidRequestError("x"): (Status.INVALID_ARGUMENT, "invalid_request"),
    errors.OutOfRangeError("x"): (Status.INVALID_ARGUMENT, "out_of_range"),
    errors.ExtremeInputError("x"): (Status.INVALID_ARGUMENT, "extreme_input"),
    errors.NoCriticError("x"): (Status.FAILED_PRECONDITION, "no_critic"),
    errors.UnknownPolicyError("x"): (Status.NOT_FOUND, "unknown_policy"),
    errors.UnknownVersionError("x"): (Status.NOT_FOUND, "unknown_version"),
    OverloadedError("x", reason=Reason.QUEUE_FULL): (Status.RESOURCE_EXHAUSTED, "queue_full"),
    OverloadedError("x", reason=Reason.QUEUE_AGE): (Status.RESOURCE_EXHAUSTED, "queue_age"),
    OverloadedError("x", reason=Reason.DEADLINE_TOO_SHORT): (Status.RESOURCE_EXHAUSTED, "deadline_too_short"),
    errors.MemoryLimitError("x"): (Status.RESOURCE_EXHAUSTED, "memory_limit"),
    errors.RateLimitError("x"): (Status.RESOURCE_EXHAUSTED, "rate_limit"),
    errors.UnauthenticatedError(): (Status.UNAUTHENTICATED, "unauthenticated"),
    errors.PermissionDeniedError(): (Status.PERMISSION_DENIED, "permission_denied"),
    errors.DeadlinePassedError("x"): (Status.DEADLINE_EXCEEDED, "deadline_exceeded"),
    errors.DrainingError(): (Status.UNAVAILABLE, "draining"),
    errors.NotReadyError("x"): (Status.UNAVAILABLE, "not_ready"),
    errors.ComputationError("x"): (Status.INTERNAL, "computation_failed"),
    errors.ComputationTimeoutError("x"): (Status.INTERNAL, "computation_timeout"),
    errors.NonFiniteActionError("x"): (Status.INTERNAL, "non_finite_action"),
    errors.UnexpectedError(): (Status.INTERNAL, "internal"),
    DeploymentError(Reason.VERSION_REFUSED, "x"): (Status.FAILED_PRECONDITION, "version_refused"),
    DeploymentError(Reason.NO_PREVIOUS, "x"): (Status.FAILED_PRECONDITION, "no_previous"),
    DeploymentError(Reason.VERSION_IS_LIVE, "x"): (Status.FAILED_PRECONDITION, "version_is_live"),
    DeploymentError(Reason.FIXED_VERSION, "x"): (Status.FAILED_PRECONDITION, "fixed_version"),
    DeploymentError(Reason.BUSY, "x"): (Status.ABORTED, "busy"),
}
STATUSES = {reason: status.name for status, reason in TABLE.values()}
OF_ADMIN_ONLY = {error.reason for error in TABLE if isinstance(error, DeploymentError)}
PROTOS = Path(__file__).parents[2] / "protos/kilolayer/v1"


@pytest.mark.parametrize(("error", "expected"), TABLE.items(), ids=lambda part: getattr(part, "reason", ""))
def test_each_error_has_its_status_and_its_reason(error: ServingError, expected: tuple[Status, str]) -> None:
    assert (error.status, error.reason) == expected
    assert error.trailers[0] == ("kilolayer-reason", expected[1])


def test_every_reason_belongs_to_an_error() -> None:
    assert sorted(reason for _, reason in TABLE.values()) == sorted(Reason)
    assert {error.reason for error in TABLE if isinstance(error, OverloadedError)} == set(REJECTION_REASONS)


def documented(proto: str) -> list[tuple[str, str]]:
    """Reasons and statuses in the table of a file of the contract."""
    text = (PROTOS / proto).read_text()
    assert "`kilolayer-reason`" in text
    return re.findall(r"^// ([a-z_]+) +([A-Z_]+)  +\w", text, re.MULTILINE)


def test_the_contract_lists_every_reason_with_its_status() -> None:
    of_robots = [reason for reason in Reason if reason not in OF_ADMIN_ONLY]
    assert documented("policy.proto") == [(reason, STATUSES[reason]) for reason in of_robots]
    of_admin = documented("admin.proto")
    assert {reason for reason, _ in of_admin} == {*DEPLOYMENT_REASONS, "invalid_request", "internal"}
    assert all(STATUSES[reason] == status for reason, status in of_admin)


@pytest.mark.parametrize("reason", [Reason.UNKNOWN_POLICY, Reason.UNKNOWN_VERSION])
def test_a_change_of_what_does_not_exist_is_not_found(reason: Reason) -> None:
    assert DeploymentError(reason, "x").status is Status.NOT_FOUND


def test_only_a_rejection_tells_grpc_not_to_retry() -> None:
    told = {error for error in TABLE if ("grpc-retry-pushback-ms", "-1") in error.trailers}
    kinds = OverloadedError | errors.MemoryLimitError | errors.RateLimitError
    assert told == {error for error in TABLE if isinstance(error, kinds)}


def test_statuses_have_the_names_and_numbers_of_grpc() -> None:
    assert {status.name: status.value for status in Status}.items() <= {
        code.name: code.value[0] for code in grpc.StatusCode
    }.items()


def test_echoed_text_is_short_plain_and_on_one_line() -> None:
    assert echo("a\n\x1b[0mé") == r"'a\n\x1b[0m\xe9'"
    assert echo("x" * 65) == repr("x" * 64 + "...")


MEMORY, THREADS, DESCRIPTORS = "too little memory (", "too little memory or too few processes", "too few file desc"
SPACE = "too little free space on the disk, or no folder for temporary files (TMPDIR)"


@pytest.mark.parametrize(
    ("error", "lacking"),
    [
        (MemoryError(), MEMORY),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), MEMORY),
        (ImportError("libx.so: failed to map segment from shared object"), MEMORY),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 64 bytes."), MEMORY),
        (RuntimeError("can't start new thread"), THREADS),
        (BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)), THREADS),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), DESCRIPTORS),
        (OSError(errno.ENFILE, os.strerror(errno.ENFILE)), DESCRIPTORS),
        (ValueError('NOT_FOUND: Error opening "x": [OS error 24: EMFILE Too many open files]'), DESCRIPTORS),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), SPACE),
        (FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"), SPACE),
    ],
)
def test_a_shortage_is_named_also_as_the_cause_of_another_error(error: Exception, lacking: str) -> None:
    assert shortage(error).startswith(lacking)
    outer = ValueError("version 1 is damaged")
    outer.__cause__ = error
    assert shortage(outer).startswith(lacking)


@pytest.mark.parametrize("error", [ValueError("x"), OSError(errno.EACCES, os.strerror(errno.EACCES)), KeyError(24)])
def test_other_errors_are_no_shortage(error: Exception) -> None:
    error.__context__ = ValueError("y")
    error.__context__.__context__ = error  # a circle, as a library may make
    assert shortage(error) == ""
