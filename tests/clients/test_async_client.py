"""The asyncio client: the responses and failures of PolicyClient, shared by tasks, cancelled with its task."""

from __future__ import annotations  # for Python 3.9

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import pytest_asyncio

import kilolayer
from kilolayer import _async_client
from kilolayer._async_connection import AsyncConnection
from tests.clients.fakes import FakePolicy, free_port, start_server

Client = kilolayer.AsyncPolicyClient


@pytest.fixture
def held(fake: FakePolicy) -> Iterator[threading.Event]:
    """Set once the server holds an Act, which it does until the test ends or the caller gives up."""
    fake.on_act = lambda _: fake.act_ended.wait(60)
    yield fake.act_arrived
    fake.act_ended.set()


@pytest_asyncio.fixture
async def client(address: str) -> AsyncIterator[Client]:
    async with Client(address, timeout_s=60) as client:
        yield client


async def test_it_gives_what_policy_client_gives(address: str, fake: FakePolicy) -> None:
    async with Client(address, policy="ant", version=7, timeout_s=60, robot_id="robot 7") as client:
        drawn = await client.act([0.5, 0.25, 9], [0.25, 0.75], seed=5, best_of=8, priority=2, sequence=41)
        block = await client.act([[0.5, 0, 0], [0.25, 0, 0]], [0, 0])
        score = await client.score([0, 0, 0], [0.75, 0], goal=[0.25, 0], priority=1)
        status = await client.report(3, version="7", reached=True, time_at_goal=9)
        description = await client.describe()
        policies = await client.list_policies()
    assert drawn.action.tolist() == [0.75, -0.25]
    assert (drawn.policy, drawn.version, drawn.sequence) == ("ant", "7", 41)
    assert (drawn.queue_us, drawn.compute_us, drawn.batch_rows) == (11, 22, 6)
    assert 0 < drawn.round_trip_s < 60
    assert block.action.tolist() == [[1, 0], [0.5, 0]]
    assert float(score.energy) == 0.5
    assert score.policy == description.name == "ant"
    assert [listing.policy for listing in policies] == ["ant", "maze"]
    assert (fake.acts[0].seed, fake.acts[0].candidates, fake.acts[0].priority) == (5, 8, 2)
    assert fake.scores[0].priority == 1
    assert status is kilolayer.ReportStatus.ACCEPTED
    (report,) = fake.reports
    assert (report.policy, report.version, report.robot_id) == ("ant", "7", "robot 7")
    assert (report.episode, report.reached, report.time_at_goal) == (3, True, 9)
    assert [request.sequence for request in (*fake.acts, *fake.scores)] == [41, 1, 2]


def test_its_public_methods_are_those_of_policy_client() -> None:
    def methods(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert methods(kilolayer.PolicyClient) - methods(Client) == {"stream"}
    assert methods(Client) <= methods(kilolayer.PolicyClient)


async def test_tasks_share_a_client_and_each_gets_its_own_reply(client: Client, fake: FakePolicy) -> None:
    responses = await asyncio.gather(*(client.act([task / 256, 0, 0], [0, 0]) for task in range(100)))
    assert [response.action.tolist() for response in responses] == [[task / 128, 0] for task in range(100)]
    assert len(fake.acts) == 100


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("INVALID_ARGUMENT", kilolayer.InvalidRequest),
        ("NOT_FOUND", kilolayer.PolicyNotFound),
        ("RESOURCE_EXHAUSTED", kilolayer.Overloaded),
        ("UNAVAILABLE", kilolayer.Unavailable),
        ("CANCELLED", kilolayer.Unavailable),
        ("INTERNAL", kilolayer.ServerFailure),
    ],
)
@pytest.mark.parametrize("reason", ["", "queue_age"])
async def test_each_status_has_its_exception(
    client: Client, fake: FakePolicy, *, code: str, reason: str, kind: type[kilolayer.KilolayerError]
) -> None:
    fake.failure, fake.reason = (grpc.StatusCode[code], "the text of the server"), reason
    with pytest.raises(kilolayer.KilolayerError, match="the text of the server") as failure:
        await client.act([0, 0, 0], [0, 0])
    assert type(failure.value) is kind
    assert failure.value.status == code
    assert failure.value.reason == reason
    assert len(fake.acts) == 1


async def test_arguments_that_do_not_fit_are_refused_before_sending(client: Client, fake: FakePolicy) -> None:
    with pytest.raises(kilolayer.InvalidRequest, match="Not sent: best_of=8 samples actions"):
        await client.act([0, 0, 0], [0, 0], best_of=8)
    with pytest.raises(ValueError, match="timeout_s must be a positive number"):
        await client.act([0, 0, 0], [0, 0], timeout_s=0)
    assert fake.acts == []


async def test_a_call_ends_at_its_deadline(client: Client, held: threading.Event) -> None:
    await client.describe()
    with pytest.raises(kilolayer.DeadlineExceeded, match=r"failed \(DEADLINE_EXCEEDED, timeout 0\.05 s\)"):
        await client.act([0, 0, 0], [0, 0], timeout_s=0.05)


async def test_the_server_sees_the_deadline(client: Client, fake: FakePolicy) -> None:
    for timeout_s in (None, 600):
        await client.act([0, 0, 0], [0, 0], timeout_s=timeout_s)
    first_s, second_s = (remaining_s or 0 for remaining_s in fake.remaining_s)
    assert 30 < first_s < 70  # gRPC rounds up
    assert 570 < second_s < 630


async def test_the_time_to_open_a_channel_counts_against_the_deadline(
    address: str, fake: FakePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s, opening = [100.0], AsyncConnection.methods
    monkeypatch.setattr(_async_client, "time", SimpleNamespace(perf_counter=lambda: now_s[0]))

    def open_slowly(connection: AsyncConnection) -> Any:
        now_s[0] += 400
        return opening(connection)

    monkeypatch.setattr(AsyncConnection, "methods", open_slowly)
    async with Client(address, timeout_s=600) as client:
        await client.act([0, 0, 0], [0, 0])
        (remaining_s,) = fake.remaining_s
        assert 100 < (remaining_s or 0) < 250  # of the 200 s that were left
        with pytest.raises(kilolayer.DeadlineExceeded):
            await client.act([0, 0, 0], [0, 0], timeout_s=300)  # no time is left


async def test_the_round_trip_includes_the_time_of_the_server(
    client: Client, fake: FakePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [100.0]
    monkeypatch.setattr(_async_client, "time", SimpleNamespace(perf_counter=lambda: now_s[0]))

    def take_a_quarter_second(_reply: Any) -> None:
        now_s[0] += 0.25

    fake.on_act = take_a_quarter_second
    assert (await client.act([0, 0, 0], [0, 0])).round_trip_s == 0.25


async def test_a_reply_after_the_deadline_is_never_a_success(
    client: Client, fake: FakePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [100.0]  # of the client, whose timeout is 60 s; gRPC measures the real time
    monkeypatch.setattr(_async_client, "time", SimpleNamespace(perf_counter=lambda: now_s[0]))

    def take_long(_reply: Any) -> None:
        now_s[0] += 60.25

    fake.on_act = fake.on_score = take_long
    for call in (client.act([0, 0, 0], [0, 0]), client.score([0, 0, 0], [0, 0], goal=[0, 0])):
        with pytest.raises(kilolayer.DeadlineExceeded, match=r"timeout 60 s\): the reply came too late\."):
            await call


async def test_canceling_a_task_cancels_its_call(client: Client, fake: FakePolicy, held: threading.Event) -> None:
    call = asyncio.create_task(client.act([0, 0, 0], [0, 0]))
    assert await asyncio.to_thread(held.wait, 60)
    assert not fake.act_ended.is_set()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await asyncio.to_thread(fake.act_ended.wait, 60), "the server still works on the call"
    fake.on_act = lambda _: None
    assert (await client.act([0.5, 0, 0], [0, 0])).action.tolist() == [1, 0]


async def test_closing_ends_a_pending_call(address: str, held: threading.Event) -> None:
    client = Client(address, timeout_s=60)
    call = asyncio.create_task(client.act([0, 0, 0], [0, 0]))
    assert await asyncio.to_thread(held.wait, 60)
    await client.close()
    with pytest.raises(kilolayer.ClientClosed, match="Make a new client"):
        await asyncio.wait_for(call, 60)
    await client.close()
    calls: list[Callable[[], Any]] = [
        lambda: client.act([0, 0, 0], [0, 0]),
        lambda: client.score([0, 0, 0], [0, 0], goal=[0, 0]),
        client.describe,
        client.list_policies,
        lambda: client.wait_until_ready(5),
    ]
    for later in calls:
        with pytest.raises(kilolayer.ClientClosed):
            await later()


async def test_a_task_cancelled_just_before_closing_is_cancelled(address: str, held: threading.Event) -> None:
    client = Client(address, timeout_s=60)
    call = asyncio.create_task(client.act([0, 0, 0], [0, 0]))
    assert await asyncio.to_thread(held.wait, 60)
    call.cancel()
    await client.close()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert call.cancelled()


async def test_an_absent_server_is_unavailable_immediately(nowhere: str) -> None:
    async with Client(nowhere, timeout_s=60) as client:
        with pytest.raises(kilolayer.Unavailable, match="Connection refused"):  # and not DeadlineExceeded
            await client.act([0, 0, 0], [0, 0])


async def test_wait_until_ready_waits_for_a_server_that_starts_later(fake: FakePolicy) -> None:
    fake.failure = (grpc.StatusCode.UNAVAILABLE, "loading")
    port = free_port()
    with socket.create_server(("127.0.0.1", port)) as listener:
        client = Client(f"127.0.0.1:{port}")
        wait = asyncio.create_task(client.wait_until_ready(120))
        connection, _ = await asyncio.to_thread(listener.accept)  # the client tries to connect
        connection.close()
    server, _ = start_server(fake, port)
    assert await asyncio.to_thread(fake.describe_arrived.wait, 60)
    assert not wait.done()
    fake.failure = None
    assert (await wait).name == "maze"
    fake.failure = (grpc.StatusCode.NOT_FOUND, "there are: maze")
    with pytest.raises(kilolayer.PolicyNotFound, match="there are: maze"):
        await client.wait_until_ready(60)
    await client.close()
    server.stop(0).wait()


async def test_wait_until_ready_ends_at_its_deadline(nowhere: str) -> None:
    async with Client(nowhere) as client:
        with pytest.raises(kilolayer.DeadlineExceeded, match=r"was not ready within 0\.05 s"):
            await client.wait_until_ready(0.05)


def test_a_client_may_be_made_before_its_event_loop_and_used_in_one_only(address: str, fake: FakePolicy) -> None:
    client = Client(address, timeout_s=60)

    async def act() -> list[float]:
        return (await client.act([0.5, 0, 0], [0, 0])).action.tolist()

    async def act_in_another_loop() -> None:
        other = r"this AsyncPolicyClient of \S+ belongs to another event loop, .*; make a client in each event loop"
        for call in (act, lambda: client.describe(timeout_s=30), lambda: client.wait_until_ready(30)):
            with pytest.raises(RuntimeError, match=other):
                await call()

    assert asyncio.run(act()) == [1, 0]
    asyncio.run(act_in_another_loop())
    assert len(fake.acts) == 1
    asyncio.run(client.close())  # its own loop is closed, so any may do it
    with pytest.raises(kilolayer.ClientClosed):
        asyncio.run(act())


async def test_only_its_own_event_loop_may_close_a_client_while_that_runs(client: Client) -> None:
    await client.describe()
    with pytest.raises(RuntimeError, match="belongs to another event loop"):
        await asyncio.to_thread(asyncio.run, client.close())
    assert (await client.describe()).name == "maze"


async def test_a_client_that_made_no_call_is_closed_in_any_event_loop(address: str) -> None:
    client = Client(address)
    await asyncio.to_thread(asyncio.run, client.close())
    with pytest.raises(kilolayer.ClientClosed):
        await client.describe()


async def test_an_address_without_a_port_is_refused() -> None:
    with pytest.raises(ValueError, match="must name a port"):
        Client("localhost")
