"""The Python client's connection: servers that are absent, restart, go silent or start late; closing; threads."""

from __future__ import annotations  # for Python 3.9

import contextlib
import socket
import threading
from collections.abc import Callable
from concurrent import futures
from contextlib import ExitStack
from typing import Any

import grpc
import pytest

import kilolayer
from kilolayer import _channel
from kilolayer.v1 import policy_pb2
from tests.clients.fakes import FakePolicy, Relay, free_port, start_server


def test_an_absent_server_is_unavailable_immediately(nowhere: str) -> None:
    with kilolayer.PolicyClient(nowhere, timeout_s=60) as client:
        for _ in range(3):
            with pytest.raises(kilolayer.Unavailable, match="Connection refused"):  # and not DeadlineExceeded
                client.act([0, 0, 0], [0, 0])


def test_a_host_that_accepts_and_stays_silent_is_too_late() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with kilolayer.PolicyClient(address, timeout_s=0.05) as client, pytest.raises(kilolayer.DeadlineExceeded):
            client.act([0, 0, 0], [0, 0])


def test_a_restarted_server_is_found_again() -> None:
    server, port = start_server(FakePolicy(), free_port())
    with kilolayer.PolicyClient(f"127.0.0.1:{port}", timeout_s=60) as client:
        assert client.act([0.5, 0, 0], [0, 0]).action.tolist() == [1, 0]
        server.stop(0).wait()
        with pytest.raises(kilolayer.Unavailable):
            client.act([0.5, 0, 0], [0, 0])
        second = FakePolicy()
        server, _ = start_server(second, port)
        client.wait_until_ready(60)
        assert client.act([0.25, 0, 0], [0, 0]).action.tolist() == [0.5, 0]
        assert len(second.acts) == 1
        server.stop(0).wait()


def test_a_long_outage_does_not_delay_reconnecting() -> None:
    options = dict(_channel.CHANNEL_OPTIONS)
    assert options["grpc.initial_reconnect_backoff_ms"] == 100
    assert options["grpc.max_reconnect_backoff_ms"] == 1000  # gRPC's own limit is 120 s


def test_a_connection_that_went_silent_is_replaced(address: str, fake: FakePolicy) -> None:
    with (
        contextlib.closing(Relay(int(address.rpartition(":")[2]))) as relay,
        kilolayer.PolicyClient(relay.address, timeout_s=60) as client,
    ):
        client.wait_until_ready(60)
        assert client.act([0.5, 0, 0], [0, 0]).action.tolist() == [1, 0]
        relay.freeze()
        with pytest.raises(kilolayer.Unavailable):  # and not DeadlineExceeded, after 60 s
            client.act([0.5, 0, 0], [0, 0])
        client.wait_until_ready(60)
        assert client.act([0.25, 0, 0], [0, 0]).action.tolist() == [0.5, 0]
    assert len(fake.acts) == 2


def test_wait_until_ready_waits_for_a_server_that_starts_later(fake: FakePolicy) -> None:
    fake.failure = (grpc.StatusCode.UNAVAILABLE, "loading")
    with ExitStack() as stack:
        port = free_port()
        listener = stack.enter_context(socket.create_server(("127.0.0.1", port)))
        client = stack.enter_context(kilolayer.PolicyClient(f"127.0.0.1:{port}", policy="ant"))
        wait = stack.enter_context(futures.ThreadPoolExecutor(1)).submit(client.wait_until_ready, 120)
        listener.accept()[0].close()  # the client tries to connect
        listener.close()
        server, _ = start_server(fake, port)
        assert fake.describe_arrived.wait(60)
        assert not wait.done()
        fake.failure = None
        assert wait.result().name == "ant"
        server.stop(0).wait()


def test_wait_until_ready_ends_at_its_deadline(nowhere: str) -> None:
    with kilolayer.PolicyClient(nowhere) as client:
        with pytest.raises(kilolayer.DeadlineExceeded, match=r"was not ready within 0\.05 s") as failure:
            client.wait_until_ready(0.05)
        assert failure.value.status == "DEADLINE_EXCEEDED"
        assert isinstance(failure.value.__cause__, kilolayer.KilolayerError)


def test_wait_until_ready_of_a_server_that_never_is(address: str, fake: FakePolicy) -> None:
    fake.failure = (grpc.StatusCode.UNAVAILABLE, "loading")
    with kilolayer.PolicyClient(address) as client:
        for timeout_s in (0.2, 2.0, 20.0):  # the longer ones for a machine too busy to send anything in a shorter one
            with pytest.raises(kilolayer.DeadlineExceeded, match=f"was not ready within {timeout_s} s") as failure:
                client.wait_until_ready(timeout_s)
            assert isinstance(failure.value.__cause__, kilolayer.KilolayerError)
            assert "wait_until_ready" not in str(failure.value)
            if fake.describe_arrived.is_set():
                break
    assert fake.describe_arrived.is_set()


def test_wait_until_ready_reports_a_policy_that_is_not_there(client: kilolayer.PolicyClient, fake: FakePolicy) -> None:
    fake.failure = (grpc.StatusCode.NOT_FOUND, "there are: maze")
    with pytest.raises(kilolayer.PolicyNotFound, match="there are: maze"):
        client.wait_until_ready(60)


def test_a_closed_client_raises_client_closed(address: str, fake: FakePolicy) -> None:
    with kilolayer.PolicyClient(address, timeout_s=60) as client:
        client.act([0, 0, 0], [0, 0])
    client.close()  # a second time
    calls: list[Callable[[], Any]] = [
        lambda: client.act([0, 0, 0], [0, 0]),
        lambda: client.score([0, 0, 0], [0, 0], goal=[0, 0]),
        lambda: client.stream().act([0, 0, 0], [0, 0]),
        client.describe,
        client.list_policies,
        lambda: client.wait_until_ready(5),
    ]
    for call in calls:
        with pytest.raises(kilolayer.ClientClosed, match="Make a new client") as refusal:
            call()
        assert refusal.value.status == "CANCELLED"
    assert len(fake.acts) == 1


def test_closing_ends_a_pending_call(address: str, fake: FakePolicy) -> None:
    release = threading.Event()
    fake.on_act = lambda _: release.wait(60)
    client = kilolayer.PolicyClient(address, timeout_s=600)
    with futures.ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.act, [0, 0, 0], [0, 0])
        assert fake.act_arrived.wait(60)
        client.close()
        with pytest.raises(kilolayer.ClientClosed):
            call.result(timeout=60)
    release.set()


@pytest.mark.parametrize("method", ["act", "stream"])
def test_closing_just_before_a_call_is_sent_is_reported_clearly(
    address: str, fake: FakePolicy, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """As if another thread closed the client between its own check and the call of gRPC."""
    checks: list[str] = []
    client = kilolayer.PolicyClient(address)
    original = _channel.Endpoint.require_open

    def check_and_close(endpoint: _channel.Endpoint, name: str) -> None:
        original(endpoint, name)
        checks.append(name)
        if len(checks) == 1:
            client.close()

    monkeypatch.setattr(_channel.Endpoint, "require_open", check_and_close)
    call = client.act if method == "act" else client.stream().act
    with pytest.raises(kilolayer.ClientClosed, match="the client was closed"):
        call([0, 0, 0], [0, 0])
    assert fake.acts == []


def test_closing_ends_a_wait_for_the_server(address: str, fake: FakePolicy) -> None:
    fake.failure = (grpc.StatusCode.UNAVAILABLE, "loading")
    client = kilolayer.PolicyClient(address)
    with futures.ThreadPoolExecutor(1) as pool:
        wait = pool.submit(client.wait_until_ready, 600)
        assert fake.describe_arrived.wait(60)
        client.close()
        with pytest.raises(kilolayer.ClientClosed):
            wait.result(timeout=60)


def test_closing_ends_a_wait_for_a_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = kilolayer.PolicyClient(f"127.0.0.1:{listener.getsockname()[1]}")
        with futures.ThreadPoolExecutor(1) as pool:
            wait = pool.submit(client.wait_until_ready, 600)
            connection, _ = listener.accept()  # it says nothing to the client
            client.close()
            with pytest.raises(kilolayer.ClientClosed):
                wait.result(timeout=60)
            connection.close()


def test_threads_share_a_client_and_each_gets_its_own_answers(client: kilolayer.PolicyClient, fake: FakePolicy) -> None:
    def drive(thread: int) -> list[int]:
        numbers: list[int] = []
        for tick in range(50):
            answer = client.act([thread / 64, tick / 128, 0], [0, 0])
            assert answer.action.tolist() == [thread / 32, tick / 64]
            numbers.append(answer.sequence)
        return numbers

    with futures.ThreadPoolExecutor(8) as pool:
        numbers = [number for numbers in pool.map(drive, range(8)) for number in numbers]
    assert sorted(numbers) == list(range(1, 401))
    assert len(fake.acts) == 400


class StartsAndStalls(FakePolicy):
    """Is not ready at the first Describe, and answers no later one."""

    def __init__(self) -> None:
        super().__init__()
        self.release = threading.Event()

    def Describe(  # noqa: N802  as in the protocol
        self, request: policy_pb2.DescribeRequest, context: grpc.ServicerContext
    ) -> policy_pb2.DescribeResponse:
        if self.describe_arrived.is_set():
            self.release.wait(30)
        self.describe_arrived.set()
        context.abort(grpc.StatusCode.UNAVAILABLE, "loading")
        raise AssertionError("abort raises")


def test_a_wait_in_vain_names_the_last_reason_not_its_own_deadline() -> None:
    fake = StartsAndStalls()
    server, port = start_server(fake)
    named = pytest.raises(kilolayer.DeadlineExceeded, match=r"within 2 s\. The last attempt failed: loading\. Allow")
    with kilolayer.PolicyClient(f"127.0.0.1:{port}", timeout_s=30) as client:
        client.list_policies()  # the connection is open
        with named:
            client.wait_until_ready(2)
    fake.release.set()
    server.stop(0).wait()


def test_a_restart_after_a_long_outage_is_found_without_a_long_pause() -> None:
    """By gRPC's own pauses, 1 s and each 1.6 times the one before, the eighth attempt comes after 43 s."""
    attempts = 0
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        client = kilolayer.PolicyClient(f"127.0.0.1:{port}")
        with futures.ThreadPoolExecutor(1) as pool:
            wait = pool.submit(client.wait_until_ready, 30)
            while attempts < 7:
                listener.accept()[0].close()
                attempts += 1
            listener.close()
            server, _ = start_server(FakePolicy(), port)
            assert wait.result().name == "maze"
    client.close()
    server.stop(0).wait()
