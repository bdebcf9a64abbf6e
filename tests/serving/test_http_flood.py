"""More HTTP connections than there may be: which of them end, so that a client that behaves well is answered."""

import asyncio
import contextlib

import pytest

from serving.api.http.exchange import Exchange, HttpReply, HttpRequest
from serving.api.http.limits import Droppable, OpenConnections
from tests.serving.http_bench import BODY_S, GET, HEADER_S, LINGER_S, SEND_S, Peer, Served, echo, post, served, until

MALFORMED = b"\x16\x03\x01\r\n\r\n"
FLOOD = 50  # connections, of which only a few are open


class Named(Droppable):
    """A connection that records that it is dropped."""

    def __init__(self, name: str, dropped: list[str]) -> None:
        self._name, self._dropped = name, dropped

    def drop(self) -> None:
        self._dropped.append(self._name)


def test_lingering_connections_are_dropped_first_and_then_the_one_that_has_waited_longest() -> None:
    dropped: list[str] = []
    connections = OpenConnections(4)
    first, second, third, fourth = (Named(name, dropped) for name in ("first", "second", "third", "fourth"))
    for each in (first, second, third, fourth):
        assert connections.add(each)
    connections.answers(first)
    connections.waits(first)  # such as for its body: it has waited for a shorter time than the others
    connections.lingers(fourth)
    connections.lingers(third)
    late = [Named(f"late {number}", dropped) for number in range(4)]
    for each in late:
        assert connections.add(each)
        connections.answers(each)
    assert dropped == ["fourth", "third", "second", "first"]
    assert not connections.add(Named("too many", dropped))
    connections.waits(late[2])
    connections.waits(first)  # it is not open any more
    assert connections.add(Named("last", dropped))
    assert dropped[4:] == ["late 2"]
    assert set(connections.all) > {late[0], late[1], late[3]}


async def ended(peer: Peer) -> None:
    """Wait until the server has ended the connection of `peer`, with or without a reply."""
    with contextlib.suppress(ConnectionResetError):
        await peer.end()


async def is_answered(server: Served) -> None:
    """A new client sends a request in two parts, and gets its reply."""
    peer = await server.connect()
    raw = post(bytes(1000))
    peer.send(raw[:-500])
    peer.send(raw[-500:])
    assert (await peer.reply())[2] == b"POST / 1000"


async def test_during_a_flood_of_malformed_requests_clients_are_answered_and_stay_connected() -> None:
    async with served(max_connections=3) as server:
        client = await server.connect()
        client.send(GET)
        assert (await client.reply())[0] == 200
        flood: list[Peer] = []
        for number in range(FLOOD):
            flood.append(await server.connect())
            flood[-1].send(MALFORMED)
            await server.timers.started(LINGER_S, number + 1)
        await is_answered(server)
        client.send(GET)
        assert (await client.reply())[2] == b"GET /a?b 0"
        for peer in flood[:-2]:
            await ended(peer)


async def test_during_a_flood_of_bodies_that_do_not_come_clients_are_answered() -> None:
    async with served(max_connections=3) as server:
        flood: list[Peer] = []
        for number in range(FLOOD):
            flood.append(await server.connect())
            flood[-1].send(post(b"ab")[:-1])
            await server.timers.started(BODY_S, number + 1)
        await is_answered(server)
        for peer in flood[:-2]:
            await ended(peer)
        flood[-1].send(b"b")  # one that is not dropped is answered as before
        assert (await flood[-1].reply())[2] == b"POST / 2"
        server.timers.fire(BODY_S)  # ends the other one, so that nothing is held


async def test_during_a_flood_of_replies_that_are_not_received_clients_are_answered() -> None:
    async def answer(request: HttpRequest, exchange: Exchange) -> HttpReply:
        if request.method == "POST":
            return await echo(request, exchange)
        exchange.hold(2**25)
        return HttpReply(200, (), bytes(2**25))  # more than buffers of the kernel take

    async with served(answer, max_connections=3, max_held=2**30) as server:
        for number in range(5):
            peer = await server.connect()
            peer.send(GET)
            await server.timers.started(SEND_S, number + 1)
        await is_answered(server)
        await until(lambda: server.held.total < 3 * 2**25)  # those that are dropped hold nothing, though unsent
        while len(server.transport._open.all) > 1:  # pyright: ignore[reportPrivateUsage]
            server.timers.fire(SEND_S)
            await asyncio.sleep(0)


async def test_a_connection_that_is_dropped_has_its_call_cancelled() -> None:
    seen: asyncio.Queue[str] = asyncio.Queue()

    async def wait(_request: HttpRequest, exchange: Exchange) -> HttpReply:
        try:
            await exchange.read_body(100)
        except asyncio.CancelledError:
            seen.put_nowait("cancelled")
            raise
        raise AssertionError

    async with served(wait, max_connections=1) as server:
        peer = await server.connect()
        peer.send(post(b"ab")[:-1])
        await server.timers.started(BODY_S, 1)
        await server.connect()
        assert await asyncio.wait_for(seen.get(), 60) == "cancelled"
        await server.timers.started(HEADER_S, 2)
        await ended(peer)


@pytest.mark.parametrize("parts", [1, 2])
async def test_a_call_whose_body_has_arrived_is_not_dropped(parts: int) -> None:
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def wait(_request: HttpRequest, exchange: Exchange) -> HttpReply:
        await exchange.read_body(100)
        arrived.set()
        await go_on.wait()
        return HttpReply(200, (), b"")

    async with served(wait, max_connections=1) as server:
        peer, raw = await server.connect(), post(b"ab")
        if parts == 2:
            peer.send(raw[:-1])
            await server.timers.started(BODY_S, 1)
        peer.send(raw if parts == 1 else raw[-1:])
        await arrived.wait()
        assert (await (await server.connect()).refusal())[0] == 503
        go_on.set()
        assert (await peer.reply())[0] == 200
