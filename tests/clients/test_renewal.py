"""A channel to a name: another takes its place when no server is found, and pending calls are not lost."""

from __future__ import annotations  # for Python 3.9

import asyncio
import threading
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest

import kilolayer
from kilolayer._renewal import Renewal
from tests.clients.fakes import FakePolicy, free_port, start_server

NAME = "policy.example.com:50051"


class Names:
    """Stands for DNS: the target that a new channel to any name gets."""

    def __init__(self) -> None:
        self.target = "dns:///no-such-host.invalid:1"
        self.opened = 0


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    names = Names()

    def replace(module: Any) -> None:
        original = module.insecure_channel

        def open_channel(_target: str, options: Any) -> Any:
            names.opened += 1
            return original(names.target, options=options)

        monkeypatch.setattr(module, "insecure_channel", open_channel)

    replace(grpc)
    replace(grpc.aio)
    return names


class Draining:
    """A server with a call that it answers only when released, also after it has begun to stop."""

    def __init__(self) -> None:
        self.fake = FakePolicy()
        self.release = threading.Event()
        self.fake.on_act = lambda _: self.release.wait(30)
        self._server, port = start_server(self.fake)
        self.target = f"dns:///localhost:{port}"

    def begin_to_stop(self) -> None:
        self._server.stop(30)


@pytest.fixture
def draining() -> Iterator[Draining]:
    server = Draining()
    yield server
    server.release.set()


def test_a_renewal_is_due_after_a_failure_and_at_most_about_once_a_second() -> None:
    now_s = [100.0]
    renewal = Renewal(lambda: now_s[0])
    assert not renewal.is_due()
    renewal.failed()
    assert renewal.is_due()
    assert not renewal.is_due()
    renewal.failed()
    now_s[0] += 0.79
    assert not renewal.is_due()
    now_s[0] += 0.42
    assert renewal.is_due()
    now_s[0] += 1000
    assert not renewal.is_due()


def test_a_name_that_is_unknown_at_first_is_asked_for_again(names: Names, address: str) -> None:
    with kilolayer.PolicyClient(NAME, timeout_s=30) as client:
        with pytest.raises(kilolayer.Unavailable, match="the host name is not known"):
            client.act([0, 0, 0], [0, 0])
        names.target = f"dns:///{address}"
        client.wait_until_ready(30)
        assert client.act([0.5, 0, 0], [0, 0]).action.tolist() == [1, 0]
        with client.stream() as stream:
            assert stream.act([0.25, 0, 0], [0, 0]).action.tolist() == [0.5, 0]
        assert names.opened == 2


async def test_an_async_client_asks_again_too(names: Names, address: str) -> None:
    async with kilolayer.AsyncPolicyClient(NAME, timeout_s=30) as client:
        with pytest.raises(kilolayer.Unavailable, match="the host name is not known"):
            await client.act([0, 0, 0], [0, 0])
        names.target = f"dns:///{address}"
        await client.wait_until_ready(30)
        assert (await client.act([0.5, 0, 0], [0, 0])).action.tolist() == [1, 0]
        assert names.opened == 2


def test_a_stream_alone_asks_again_too(names: Names, address: str) -> None:
    with kilolayer.PolicyClient(NAME, timeout_s=30) as client, client.stream() as stream:
        with pytest.raises(kilolayer.Unavailable, match="the host name is not known"):
            stream.act([0, 0, 0], [0, 0])
        names.target = f"dns:///{address}"
        assert stream.act([0.25, 0, 0], [0, 0]).action.tolist() == [0.5, 0]


def test_a_server_with_a_new_ip_address_is_found(names: Names, address: str) -> None:
    names.target = f"dns:///localhost:{free_port()}"
    with kilolayer.PolicyClient(NAME, timeout_s=30) as client:
        with pytest.raises(kilolayer.Unavailable, match="Connection refused"):
            client.act([0, 0, 0], [0, 0])
        names.target = f"dns:///{address}"
        client.wait_until_ready(30)


@pytest.mark.parametrize("method", ["act", "stream"])
def test_a_pending_call_outlives_its_channel(names: Names, draining: Draining, *, address: str, method: str) -> None:
    names.target = draining.target
    with (
        kilolayer.PolicyClient(NAME, timeout_s=60) as client,
        client.stream() as stream,
        futures.ThreadPoolExecutor(1) as pool,
    ):
        pending = pool.submit(client.act if method == "act" else stream.act, [0.5, 0, 0], [0, 0])
        assert draining.fake.act_arrived.wait(30)
        draining.begin_to_stop()
        names.target = f"dns:///{address}"
        client.wait_until_ready(30)
        assert names.opened >= 2
        assert not pending.done()
        draining.release.set()
        assert pending.result(30).action.tolist() == [1, 0]
        assert client.act([0.25, 0, 0], [0, 0]).action.tolist() == [0.5, 0]
        assert stream.act([0.25, 0, 0], [0, 0]).action.tolist() == [0.5, 0]


async def test_an_async_pending_call_outlives_its_channel(names: Names, draining: Draining, address: str) -> None:
    names.target = draining.target
    async with kilolayer.AsyncPolicyClient(NAME, timeout_s=60) as client:
        pending = asyncio.ensure_future(client.act([0.5, 0, 0], [0, 0]))
        assert await asyncio.to_thread(draining.fake.act_arrived.wait, 30)
        draining.begin_to_stop()
        names.target = f"dns:///{address}"
        await client.wait_until_ready(30)
        assert not pending.done()
        draining.release.set()
        assert (await pending).action.tolist() == [1, 0]
        assert (await client.act([0.25, 0, 0], [0, 0])).action.tolist() == [0.5, 0]


def test_a_closed_client_opens_no_channel(names: Names) -> None:
    client = kilolayer.PolicyClient(NAME, timeout_s=30)
    with pytest.raises(kilolayer.Unavailable):
        client.act([0, 0, 0], [0, 0])
    client.close()
    with pytest.raises(kilolayer.ClientClosed):
        client.act([0, 0, 0], [0, 0])
    assert names.opened == 1


@pytest.mark.parametrize("address", ["127.0.0.1:PORT", "localhost:PORT", "127.0.0.1:PORT,127.0.0.1:PORT"])
def test_an_address_without_a_name_keeps_its_channel(names: Names, address: str) -> None:
    port = str(free_port())
    names.target = f"ipv4:127.0.0.1:{port}"
    with kilolayer.PolicyClient(address.replace("PORT", port), timeout_s=30) as client:
        for _ in range(3):
            with pytest.raises(kilolayer.Unavailable):
                client.act([0, 0, 0], [0, 0])
    assert names.opened == 1
