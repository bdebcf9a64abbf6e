"""The exceptions of the Python client."""

from __future__ import annotations  # for Python 3.9

import functools
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest

import kilolayer
from kilolayer import _client
from kilolayer._connect_failures import Security, explain
from kilolayer._connection import Connection
from kilolayer.v1 import policy_pb2
from tests.clients.fakes import FakePolicy


@pytest.mark.parametrize(
    ("code", "kind", "parent", "advice"),
    [
        ("INVALID_ARGUMENT", kilolayer.InvalidRequest, kilolayer.RequestError, "describe()"),
        ("OUT_OF_RANGE", kilolayer.InvalidRequest, kilolayer.RequestError, "describe()"),
        ("NOT_FOUND", kilolayer.PolicyNotFound, kilolayer.RequestError, "list_policies()"),
        ("UNAUTHENTICATED", kilolayer.AccessDenied, kilolayer.RequestError, "access"),
        ("PERMISSION_DENIED", kilolayer.AccessDenied, kilolayer.RequestError, "access"),
        ("RESOURCE_EXHAUSTED", kilolayer.Overloaded, kilolayer.ServerError, ""),  # by method, below
        ("UNAVAILABLE", kilolayer.Unavailable, kilolayer.ServerError, "Check the address"),
        ("DEADLINE_EXCEEDED", kilolayer.DeadlineExceeded, kilolayer.KilolayerError, "allow more time"),
        ("UNIMPLEMENTED", kilolayer.ServerFailure, kilolayer.ServerError, "Kilolayer server of this version"),
        ("INTERNAL", kilolayer.ServerFailure, kilolayer.ServerError, "log"),
        ("UNKNOWN", kilolayer.ServerFailure, kilolayer.ServerError, "log"),
        ("DATA_LOSS", kilolayer.ServerFailure, kilolayer.ServerError, "log"),
        ("ABORTED", kilolayer.ServerFailure, kilolayer.ServerError, "log"),
        ("CANCELLED", kilolayer.Unavailable, kilolayer.ServerError, "in a moment"),
        ("ALREADY_EXISTS", kilolayer.ServerFailure, kilolayer.ServerError, "log"),
        ("FAILED_PRECONDITION", kilolayer.NotSupported, kilolayer.RequestError, "describe().critic"),
    ],
)
def test_each_status_has_its_exception_and_is_never_retried(
    client: kilolayer.PolicyClient,
    fake: FakePolicy,
    *,
    code: str,
    kind: type[kilolayer.KilolayerError],
    parent: type[kilolayer.KilolayerError],
    advice: str,
) -> None:
    fake.failure = (grpc.StatusCode[code], "the reason of the server")
    score = functools.partial(client.score, [0, 0, 0], [0, 0], goal=[0, 0])
    for call in (lambda: client.act([0, 0, 0], [0, 0]), score, client.describe, client.list_policies):
        with pytest.raises(kilolayer.KilolayerError, match="the reason of the server") as failure:
            call()
        assert type(failure.value) is kind
        assert isinstance(failure.value, parent)
        assert failure.value.status == code
        assert failure.value.reason == ""
        assert code in str(failure.value)
        assert advice in str(failure.value)
    assert len(fake.acts) == len(fake.scores) == 1


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (
            "UNAVAILABLE",
            {
                "act": "Check the address, or send the next observation in a moment.",
                "report": "Check the address, or send the report again later.",
                "describe": "Check the address, or try again in a moment.",
            },
        ),
        (
            "DEADLINE_EXCEEDED",
            {
                "act": "Send the next observation, or allow more time.",
                "report": "Send the report again later, or allow more time.",
                "describe": "Try again in a moment, or allow more time.",
            },
        ),
        (
            "RESOURCE_EXHAUSTED",
            {
                "act": "Send the next observation, not this one again.",
                "report": "Send the report again later.",
                "describe": "Try again in a moment.",
            },
        ),
    ],
)
def test_the_advice_fits_the_method(address: str, fake: FakePolicy, *, code: str, advice: dict[str, str]) -> None:
    fake.failure = (grpc.StatusCode[code], "any text")
    with kilolayer.PolicyClient(address, timeout_s=60, robot_id="7") as client:
        calls: list[tuple[Callable[[], Any], str]] = [
            (lambda: client.act([0, 0, 0], [0, 0]), advice["act"]),
            (lambda: client.stream().act([0, 0, 0], [0, 0]), advice["act"]),
            (lambda: client.report(1, version="1", reached=True), advice["report"]),
            (client.describe, advice["describe"]),
            (client.list_policies, advice["describe"]),
        ]
        for call, expected in calls:
            with pytest.raises(kilolayer.KilolayerError) as failure:
                call()
            assert str(failure.value).endswith(f": any text. {expected}")


def test_a_refused_request_with_candidates_is_explained_with_best_of_whatever_its_text(
    client: kilolayer.PolicyClient, fake: FakePolicy
) -> None:
    fake.failure = (grpc.StatusCode.INVALID_ARGUMENT, "any text")
    explained = "best_of is the number of candidates, and each counts as a row"
    with pytest.raises(kilolayer.InvalidRequest, match=explained):
        client.act([0, 0, 0], [0, 0], seed=1, best_of=9)
    with pytest.raises(kilolayer.InvalidRequest, match="any text") as plain:
        client.act([0, 0, 0], [0, 0])
    assert explained not in str(plain.value)


def test_every_status_is_covered_above() -> None:
    marks = test_each_status_has_its_exception_and_is_never_retried.pytestmark  # type: ignore[attr-defined]
    assert {case[0] for case in marks[0].args[1]} == {code.name for code in grpc.StatusCode} - {"OK"}


def test_the_reason_of_the_server_is_part_of_the_exception(client: kilolayer.PolicyClient, fake: FakePolicy) -> None:
    fake.failure, fake.reason = (grpc.StatusCode.RESOURCE_EXHAUSTED, "any text"), "deadline_too_short"
    calls: list[Callable[[], Any]] = [
        lambda: client.act([0, 0, 0], [0, 0]),
        lambda: client.stream().act([0, 0, 0], [0, 0]),
        client.describe,
    ]
    for call in calls:
        with pytest.raises(kilolayer.Overloaded) as failure:
            call()
        assert failure.value.reason == "deadline_too_short"


@pytest.mark.parametrize(
    ("rows", "reason", "kind"),
    [
        (500_000, "", kilolayer.InvalidRequest),  # 6 MB, over gRPC's limit of 4 MiB: gRPC itself rejects it
        (6_000, "", kilolayer.InvalidRequest),
        (6_000, "queue_full", kilolayer.Overloaded),
        (1, "", kilolayer.Overloaded),  # no server rejects a message of 24 bytes for its size
    ],
)
def test_a_message_over_the_limit_is_an_invalid_request_not_overload(
    client: kilolayer.PolicyClient, fake: FakePolicy, *, rows: int, reason: str, kind: type[kilolayer.KilolayerError]
) -> None:
    fake.failure, fake.reason = (grpc.StatusCode.RESOURCE_EXHAUSTED, "any text"), reason
    with pytest.raises(kilolayer.KilolayerError) as refusal:
        client.act(np.zeros((rows, 3)), [0, 0])
    assert type(refusal.value) is kind
    assert refusal.value.status == "RESOURCE_EXHAUSTED"
    assert refusal.value.reason == reason
    assert ("Send fewer rows in one call" in str(refusal.value)) == (kind is kilolayer.InvalidRequest)
    assert len(fake.acts) == (rows < 500_000)


@pytest.mark.parametrize("own_limit", [True, False])
def test_a_call_ends_at_its_deadline(address: str, fake: FakePolicy, own_limit: bool) -> None:
    release = threading.Event()
    fake.on_act = lambda _: release.wait(60)
    with kilolayer.PolicyClient(address, timeout_s=0.05 if own_limit else 60) as client:
        client.describe(timeout_s=60)
        with pytest.raises(kilolayer.DeadlineExceeded, match=r"failed \(DEADLINE_EXCEEDED, timeout 0\.05 s\)"):
            client.act([0, 0, 0], [0, 0], timeout_s=None if own_limit else 0.05)
        release.set()
    assert len(fake.acts) <= 1  # none if the server got the call after its deadline


def test_the_server_sees_the_deadline(address: str, fake: FakePolicy) -> None:
    with kilolayer.PolicyClient(address, timeout_s=60) as client:
        for timeout_s in (None, 600):
            client.act([0, 0, 0], [0, 0], timeout_s=timeout_s)
    first_s, second_s = (remaining_s or 0 for remaining_s in fake.remaining_s)
    assert 30 < first_s < 70  # gRPC rounds up
    assert 570 < second_s < 630


def test_after_a_deadline_the_next_call_gets_its_own_reply(client: kilolayer.PolicyClient, fake: FakePolicy) -> None:
    release = threading.Event()
    fake.on_act = lambda _: release.wait(60)
    with pytest.raises(kilolayer.DeadlineExceeded):
        client.act([0.5, 0.5, 0], [0, 0], timeout_s=0.05)
    release.set()
    assert client.act([0.125, 0.25, 0], [0, 0]).action.tolist() == [0.25, 0.5]


def test_the_time_to_open_a_channel_counts_against_the_deadline(
    address: str, fake: FakePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s, opening = [100.0], Connection.channel
    monkeypatch.setattr(_client, "time", SimpleNamespace(perf_counter=lambda: now_s[0]))

    def open_slowly(connection: Connection, method: str) -> Any:
        now_s[0] += 400
        return opening(connection, method)

    monkeypatch.setattr(Connection, "channel", open_slowly)
    with kilolayer.PolicyClient(address, timeout_s=600) as client:
        client.act([0, 0, 0], [0, 0])
        (remaining_s,) = fake.remaining_s
        assert 100 < (remaining_s or 0) < 250  # of the 200 s that were left
        with pytest.raises(kilolayer.DeadlineExceeded):
            client.act([0, 0, 0], [0, 0], timeout_s=300)  # no time is left


def test_the_round_trip_includes_the_time_of_the_server(
    client: kilolayer.PolicyClient, fake: FakePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [100.0]
    monkeypatch.setattr(_client, "time", SimpleNamespace(perf_counter=lambda: now_s[0]))

    def take_a_quarter_second(_reply: policy_pb2.ActResponse) -> None:
        now_s[0] += 0.25

    fake.on_act = take_a_quarter_second
    assert client.act([0, 0, 0], [0, 0]).round_trip_s == 0.25


@pytest.mark.parametrize(("took_s", "is_late"), [(60.0, False), (60.25, True)])
def test_a_reply_after_the_deadline_is_never_a_success(
    client: kilolayer.PolicyClient, fake: FakePolicy, monkeypatch: pytest.MonkeyPatch, *, took_s: float, is_late: bool
) -> None:
    now_s = [100.0]  # of the client, whose timeout is 60 s; gRPC measures the real time
    monkeypatch.setattr(_client, "time", SimpleNamespace(perf_counter=lambda: now_s[0]))

    def take_long(_reply: Any) -> None:
        now_s[0] += took_s

    fake.on_act = fake.on_score = take_long
    calls: list[Callable[[], Any]] = [
        lambda: client.act([0, 0, 0], [0, 0]),
        lambda: client.score([0, 0, 0], [0, 0], goal=[0, 0]),
    ]
    for call in calls:
        if is_late:
            with pytest.raises(kilolayer.DeadlineExceeded, match=r"timeout 60 s\): the reply came too late\.") as late:
                call()
            assert late.value.status == "DEADLINE_EXCEEDED"
        else:
            assert call().round_trip_s == took_s


def test_a_reply_that_takes_too_long_to_read_is_late(
    client: kilolayer.PolicyClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [100.0]
    monkeypatch.setattr(_client, "time", SimpleNamespace(perf_counter=lambda: now_s[0]))
    read = kilolayer.Action.from_proto

    def read_slowly(*arguments: Any, **options: Any) -> kilolayer.Action:
        now_s[0] += 60.25
        return read(*arguments, **options)

    monkeypatch.setattr(kilolayer.Action, "from_proto", read_slowly)
    with pytest.raises(kilolayer.DeadlineExceeded, match="the reply came too late"):
        client.act([0, 0, 0], [0, 0])


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf")])
def test_every_limit_is_a_positive_number(client: kilolayer.PolicyClient, timeout_s: float) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: kilolayer.PolicyClient("localhost:50051", timeout_s=timeout_s),
        lambda: client.act([0, 0, 0], [0, 0], timeout_s=timeout_s),
        lambda: client.score([0, 0, 0], [0, 0], goal=[0, 0], timeout_s=timeout_s),
        lambda: client.stream().act([0, 0, 0], [0, 0], timeout_s=timeout_s),
        lambda: client.describe(timeout_s=timeout_s),
        lambda: client.list_policies(timeout_s=timeout_s),
        lambda: client.wait_until_ready(timeout_s),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="timeout_s must be a positive number"):
            call()


@pytest.mark.parametrize(
    ("has_tls", "cause"),
    [
        (True, "gRPC cannot use the client's certificate with its key"),  # what grpcio 1.59 says of it
        (False, "the address stands for no machine"),
    ],
)
def test_an_empty_list_of_addresses_has_another_cause_with_tls(has_tls: bool, cause: str) -> None:
    security = Security(has_tls=has_tls, has_own_ca=True, name="here")
    explained = explain("empty address list: ", security)
    assert explained is not None
    assert explained[0] == cause
