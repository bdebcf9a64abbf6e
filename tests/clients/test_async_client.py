"""The asyncio client: the answers and failures of the other one, and what is asyncio's own: sharing and cancelling."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

import kilolayer
from tests.clients.fakes import FakePolicy, free_port, start_server

Client = kilolayer.AsyncPolicyClient


@pytest.fixture
def held(fake: FakePolicy) -> Iterator[threading.Event]:
    """Set once the server holds an Act, which it does until the test ends or the caller gives up."""
    arrived = threading.Event()

    def hold(_reply: Any) -> None:
        arrived.set()
        fake.act_ended.wait(10)

    fake.on_act = hold
    yield arrived
    fake.act_ended.set()


def test_it_answers_what_the_other_client_answers(address: str, fake: FakePolicy) -> None:
    async def test() -> None:
        async with Client(address, policy="ant", version=7, timeout_s=5) as client:
            drawn = await client.act([0.5, 0.25, 9], [0.25, 0.75], seed=5, best_of=8, priority=2, sequence=41)
            block = await client.act([[0.5, 0, 0], [0.25, 0, 0]], [0, 0])
            judged = await client.score([0, 0, 0], [0.75, 0], goal=[0.25, 0], priority=1)
            described = await client.describe()
            policies = await client.list_policies()
        assert drawn.action.tolist() == [0.75, -0.25]
        assert (drawn.policy, drawn.version, drawn.sequence) == ("ant", "7", 41)
        assert (drawn.queue_us, drawn.compute_us, drawn.batch_rows) == (11, 22, 6)
        assert 0 < drawn.round_trip_s < 5
        assert block.action.tolist() == [[1, 0], [0.5, 0]]
        assert float(judged.energy) == 0.5
        assert judged.policy == described.name == "ant"
        assert [listing.policy for listing in policies] == ["ant", "maze"]

    asyncio.run(test())
    assert (fake.acts[0].seed, fake.acts[0].candidates, fake.acts[0].priority) == (5, 8, 2)
    assert fake.scores[0].priority == 1
    assert [request.sequence for request in (*fake.acts, *fake.scores)] == [41, 1, 2]


def test_its_public_methods_are_those_of_the_other_client() -> None:
    def methods(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert methods(kilolayer.PolicyClient) - methods(Client) == {"stream"}
    assert methods(Client) <= methods(kilolayer.PolicyClient)


def test_tasks_share_a_client_and_each_gets_its_own_answers(address: str, fake: FakePolicy) -> None:
    async def test() -> list[list[float]]:
        async with Client(address, timeout_s=30) as client:
            answers = await asyncio.gather(*(client.act([task / 256, 0, 0], [0, 0]) for task in range(100)))
        return [answer.action.tolist() for answer in answers]

    assert asyncio.run(test()) == [[task / 128, 0] for task in range(100)]
    assert len(fake.acts) == 100


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("INVALID_ARGUMENT", kilolayer.InvalidRequest),
        ("NOT_FOUND", kilolayer.PolicyNotFound),
        ("RESOURCE_EXHAUSTED", kilolayer.Overloaded),
        ("UNAVAILABLE", kilolayer.Unavailable),
        ("CANCELLED", kilolayer.ServerFailure),
        ("INTERNAL", kilolayer.ServerFailure),
    ],
)
def test_each_status_has_its_exception(
    address: str, fake: FakePolicy, *, code: str, kind: type[kilolayer.KilolayerError]
) -> None:
    fake.failure = (grpc.StatusCode[code], "the reason of the server")

    async def test() -> None:
        async with Client(address, timeout_s=5) as client:
            with pytest.raises(kilolayer.KilolayerError, match="the reason of the server") as failure:
                await client.act([0, 0, 0], [0, 0])
        assert type(failure.value) is kind
        assert failure.value.status == code

    asyncio.run(test())
    assert len(fake.acts) == 1


def test_what_cannot_fit_is_refused_before_sending(address: str, fake: FakePolicy) -> None:
    async def test() -> None:
        async with Client(address) as client:
            with pytest.raises(kilolayer.InvalidRequest, match="Not sent: best_of=8 samples actions"):
                await client.act([0, 0, 0], [0, 0], best_of=8)
            with pytest.raises(ValueError, match="timeout_s must be a positive number"):
                await client.act([0, 0, 0], [0, 0], timeout_s=0)

    asyncio.run(test())
    assert fake.acts == []


def test_the_deadline_is_kept(address: str, held: threading.Event) -> None:
    async def test() -> None:
        async with Client(address) as client:
            await client.describe(timeout_s=5)
            start_s = time.monotonic()
            with pytest.raises(kilolayer.DeadlineExceeded, match=r"within 0\.2 s failed \(DEADLINE_EXCEEDED\)"):
                await client.act([0, 0, 0], [0, 0], timeout_s=0.2)
            assert 0.19 < time.monotonic() - start_s < 0.7

    asyncio.run(test())
    assert held.is_set()


def test_cancelling_a_task_cancels_its_call(address: str, fake: FakePolicy, held: threading.Event) -> None:
    async def test() -> None:
        async with Client(address, timeout_s=30) as client:
            call = asyncio.create_task(client.act([0, 0, 0], [0, 0]))
            assert await asyncio.to_thread(held.wait, 5)
            assert not fake.act_ended.is_set()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert await asyncio.to_thread(fake.act_ended.wait, 5), "the server still works on the call"
            fake.on_act = lambda _: None
            assert (await client.act([0.5, 0, 0], [0, 0])).action.tolist() == [1, 0]

    asyncio.run(test())


def test_closing_ends_a_call_under_way(address: str, held: threading.Event) -> None:
    async def test() -> None:
        client = Client(address, timeout_s=30)
        call = asyncio.create_task(client.act([0, 0, 0], [0, 0]))
        assert await asyncio.to_thread(held.wait, 5)
        await client.close()
        with pytest.raises(kilolayer.ClientClosed, match="Make a new PolicyClient"):
            await asyncio.wait_for(call, 5)
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

    asyncio.run(test())


def test_an_absent_server_is_unavailable_at_once() -> None:
    async def test() -> None:
        async with Client(f"127.0.0.1:{free_port()}", timeout_s=30) as client:
            start_s = time.monotonic()
            with pytest.raises(kilolayer.Unavailable, match="Connection refused"):
                await client.act([0, 0, 0], [0, 0])
            assert time.monotonic() - start_s < 1

    asyncio.run(test())


def test_wait_until_ready_waits_for_a_server_that_starts_later() -> None:
    port, fake = free_port(), FakePolicy()

    async def test() -> None:
        async with Client(f"127.0.0.1:{port}") as client:
            begin_s = time.monotonic()
            with pytest.raises(kilolayer.DeadlineExceeded, match=r"was not ready within 0\.3 s"):
                await client.wait_until_ready(0.3)
            assert 0.25 < time.monotonic() - begin_s < 1.3
            waiting = asyncio.create_task(client.wait_until_ready(10))
            server, _ = start_server(fake, port)
            assert (await waiting).name == "maze"
            fake.failure = (grpc.StatusCode.NOT_FOUND, "there are: maze")
            with pytest.raises(kilolayer.PolicyNotFound, match="there are: maze"):
                await client.wait_until_ready(5)
        server.stop(0).wait()

    asyncio.run(test())


def test_an_address_that_cannot_be_meant_is_refused() -> None:
    with pytest.raises(ValueError, match="must name a port"):
        Client("localhost")
