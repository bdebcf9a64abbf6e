"""The Python client's connection: servers that are absent, restart, fall silent or start late; closing; threads."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any

import grpc
import pytest

import kilolayer
from kilolayer.v1 import policy_pb2
from tests.clients.fakes import FakePolicy, Relay, free_port, start_server


def test_an_absent_server_is_unavailable_at_once() -> None:
    with kilolayer.PolicyClient(f"127.0.0.1:{free_port()}", timeout_s=30) as client:
        start_s = time.monotonic()
        for _ in range(3):
            with pytest.raises(kilolayer.Unavailable, match="Connection refused"):
                client.act([0, 0, 0], [0, 0])
        assert time.monotonic() - start_s < 1


def test_a_host_that_accepts_and_stays_silent_meets_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with kilolayer.PolicyClient(address, timeout_s=0.2) as client, pytest.raises(kilolayer.DeadlineExceeded):
            client.act([0, 0, 0], [0, 0])


def test_a_restarted_server_is_found_again() -> None:
    server, port = start_server(FakePolicy())
    with kilolayer.PolicyClient(f"127.0.0.1:{port}") as client:
        assert client.act([0.5, 0, 0], [0, 0]).action.tolist() == [1, 0]
        server.stop(0).wait()
        until_s = time.monotonic() + 1  # long enough for the pause between two attempts to have grown to its limit
        while time.monotonic() < until_s:
            with pytest.raises(kilolayer.Unavailable):
                client.act([0.5, 0, 0], [0, 0])
            time.sleep(0.02)
        second = FakePolicy()
        server, _ = start_server(second, port)
        restarted_s = time.monotonic()
        while not second.acts:
            assert time.monotonic() - restarted_s < 3, "the client did not come back"
            try:
                assert client.act([0.5, 0, 0], [0, 0]).action.tolist() == [1, 0]
            except kilolayer.Unavailable:
                time.sleep(0.02)
        server.stop(0).wait()


def test_a_connection_that_went_silent_is_replaced(address: str, fake: FakePolicy) -> None:
    with (
        contextlib.closing(Relay(int(address.rpartition(":")[2]))) as relay,
        kilolayer.PolicyClient(relay.address, timeout_s=0.1) as client,
    ):
        client.wait_until_ready(5)
        assert client.act([0.5, 0, 0], [0, 0], timeout_s=5).action.tolist() == [1, 0]
        relay.freeze()
        frozen_s = time.monotonic()
        with pytest.raises(kilolayer.DeadlineExceeded):
            client.act([0.5, 0, 0], [0, 0])
        while len(fake.acts) < 2:
            assert time.monotonic() - frozen_s < 10, "the client did not come back"
            try:
                assert client.act([0.5, 0, 0], [0, 0]).action.tolist() == [1, 0]
            except (kilolayer.DeadlineExceeded, kilolayer.Unavailable):
                time.sleep(0.02)


def test_wait_until_ready_waits_for_a_server_that_starts_later() -> None:
    port, fake = free_port(), FakePolicy()
    fake.failure = (grpc.StatusCode.UNAVAILABLE, "loading")
    started: list[grpc.Server] = []

    def start_late() -> None:
        time.sleep(0.3)
        started.append(start_server(fake, port)[0])
        time.sleep(0.3)
        fake.failure = None

    starter = threading.Thread(target=start_late)
    starter.start()
    with kilolayer.PolicyClient(f"127.0.0.1:{port}", policy="ant") as client:
        begin_s = time.monotonic()
        assert client.wait_until_ready(10).name == "ant"
        assert 0.5 < time.monotonic() - begin_s < 5
    starter.join()
    started[0].stop(0).wait()


def test_wait_until_ready_gives_up_in_time() -> None:
    with kilolayer.PolicyClient(f"127.0.0.1:{free_port()}") as client:
        begin_s = time.monotonic()
        with pytest.raises(kilolayer.DeadlineExceeded, match=r"was not ready within 0\.5 s"):
            client.wait_until_ready(0.5)
        assert 0.45 < time.monotonic() - begin_s < 1.5


def test_wait_until_ready_reports_a_policy_that_is_not_there(client: kilolayer.PolicyClient, fake: FakePolicy) -> None:
    fake.failure = (grpc.StatusCode.NOT_FOUND, "there are: maze")
    with pytest.raises(kilolayer.PolicyNotFound, match="there are: maze"):
        client.wait_until_ready(5)


def test_a_closed_client_refuses_clearly(address: str, fake: FakePolicy) -> None:
    with kilolayer.PolicyClient(address) as client:
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
        with pytest.raises(kilolayer.ClientClosed, match="Make a new PolicyClient") as refusal:
            call()
        assert refusal.value.status == "CANCELLED"
    assert len(fake.acts) == 1


def test_closing_ends_a_call_under_way(address: str, fake: FakePolicy) -> None:
    arrived, release = threading.Event(), threading.Event()

    def hold(reply: policy_pb2.ActResponse) -> None:
        arrived.set()
        release.wait(10)

    fake.on_act = hold
    client = kilolayer.PolicyClient(address, timeout_s=30)
    with futures.ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.act, [0, 0, 0], [0, 0])
        assert arrived.wait(5)
        client.close()
        with pytest.raises(kilolayer.ClientClosed):
            call.result(timeout=5)
    release.set()


def test_closing_ends_a_wait_for_the_server() -> None:
    client = kilolayer.PolicyClient(f"127.0.0.1:{free_port()}")
    with futures.ThreadPoolExecutor(1) as pool:
        wait = pool.submit(client.wait_until_ready, 60)
        time.sleep(0.2)
        client.close()
        with pytest.raises(kilolayer.ClientClosed):
            wait.result(timeout=5)


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
