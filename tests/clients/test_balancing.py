"""The Python client with several servers: in turn, and only those that are alive and ready."""

from __future__ import annotations  # for Python 3.9

import json
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest

import kilolayer
from kilolayer._channel import Endpoint
from kilolayer.v1 import policy_pb2, policy_pb2_grpc
from tests.clients.fakes import FakePolicy, free_port

SERVING, NOT_SERVING = 1, 2  # of grpc.health.v1


class Health(grpc.GenericRpcHandler):
    """grpc.health.v1.Health with Watch, in bytes: the client's environment has no package for it."""

    def __init__(self) -> None:
        self.status = SERVING
        self.ended = False
        self.watched: list[bytes] = []  # the requests
        self._changed = threading.Condition()

    def set(self, status: int) -> None:
        with self._changed:
            self.status = status
            self._changed.notify_all()

    def end(self) -> None:
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        if handler_call_details.method == "/grpc.health.v1.Health/Watch":
            return grpc.unary_stream_rpc_method_handler(self._watch)
        return None

    def _watch(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        context.add_callback(lambda: self.set(self.status))  # wakes the loop below
        self.watched.append(request)
        sent = None
        while not self.ended and context.is_active():
            with self._changed:
                status = self.status
                if status == sent:
                    self._changed.wait(1)
                    continue
            sent = status
            yield bytes([8, status])  # field 1, the status


class Server:
    """A policy server with health, whose answers give its name as the version."""

    def __init__(self, name: str, *, port: int = 0, host: str = "127.0.0.1") -> None:
        self.fake, self.health = FakePolicy(), Health()
        self.fake.on_act = self._sign
        self._name = name
        self._server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers((self.health,))
        policy_pb2_grpc.add_PolicyServicer_to_server(self.fake, self._server)
        self.port = self._server.add_insecure_port(f"{host}:{port}")
        self._server.start()

    def stop(self) -> None:
        self.health.end()
        self._server.stop(0).wait()

    def _sign(self, reply: policy_pb2.ActResponse) -> None:
        reply.version = self._name


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    servers = [Server("a"), Server("b")]
    yield servers
    for server in servers:
        server.stop()


@pytest.fixture
def client(servers: list[Server]) -> Iterator[kilolayer.PolicyClient]:
    addresses = ",".join(f"127.0.0.1:{server.port}" for server in servers)
    with kilolayer.PolicyClient(addresses, timeout_s=30) as client:
        yield client


def versions(client: kilolayer.PolicyClient, calls: int) -> list[str]:
    return [client.act([0, 0, 0], [0, 0]).version for _ in range(calls)]


def versions_of(stream: kilolayer.PolicyStream, requests: int) -> list[str]:
    return [stream.act([0, 0, 0], [0, 0]).version for _ in range(requests)]


def call_until(client: kilolayer.PolicyClient, version: str) -> None:
    """Call until `version` has answered twice in a row, which a server in turn with others never does."""
    for _ in range(10_000):
        try:
            if versions(client, 2) == [version, version]:
                return
        except kilolayer.Unavailable:  # the call that finds the server dead
            continue
    raise AssertionError(f"{version} is not the only server that answers")


def call_until_all(client: kilolayer.PolicyClient, expected: set[str]) -> None:
    """Call until each of `expected` has answered."""
    client.wait_until_ready(30)
    seen: set[str] = set()
    for _ in range(10_000):
        seen.update(versions(client, 1))
        if seen == expected:
            return
    raise AssertionError(f"only {seen} answered")


def test_calls_and_streams_go_to_the_servers_in_turn(client: kilolayer.PolicyClient, servers: list[Server]) -> None:
    call_until_all(client, {"a", "b"})
    answers = Counter(versions(client, 60))
    assert min(answers["a"], answers["b"]) >= 15  # 30, if no connection is made anew
    answered = set()
    while answered != {"a", "b"}:
        with client.stream() as stream:
            version = stream.act([0, 0, 0], [0, 0]).version
            assert versions_of(stream, 3) == [version] * 3  # a stream stays where it is
            answered.add(version)
    assert [set(server.health.watched) for server in servers] == [{b""}, {b""}]  # the server, not one of its policies


async def test_an_async_client_does_the_same(servers: list[Server]) -> None:
    addresses = ",".join(f"127.0.0.1:{server.port}" for server in servers)
    async with kilolayer.AsyncPolicyClient(addresses, timeout_s=30) as client:
        await client.wait_until_ready(30)
        answered = set()
        while answered != {"a", "b"}:
            answered.add((await client.act([0, 0, 0], [0, 0])).version)


def test_a_server_that_is_not_serving_is_left_out(client: kilolayer.PolicyClient, servers: list[Server]) -> None:
    call_until_all(client, {"a", "b"})
    servers[0].health.set(NOT_SERVING)
    call_until(client, "b")
    assert versions(client, 4) == ["b"] * 4
    with client.stream() as stream:
        assert stream.act([0, 0, 0], [0, 0]).version == "b"
    servers[0].health.set(SERVING)
    call_until_all(client, {"a", "b"})
    servers[1].health.set(NOT_SERVING)
    call_until(client, "a")


def test_a_server_that_dies_is_left_out_until_it_is_back(client: kilolayer.PolicyClient, servers: list[Server]) -> None:
    call_until_all(client, {"a", "b"})
    servers[0].stop()
    call_until(client, "b")
    assert versions(client, 4) == ["b"] * 4
    servers[0] = Server("a again", port=servers[0].port)
    while "a again" not in versions(client, 2):
        pass


def test_no_server_that_is_ready_is_unavailable_immediately(
    client: kilolayer.PolicyClient, servers: list[Server]
) -> None:
    call_until_all(client, {"a", "b"})
    for server in servers:
        server.health.set(NOT_SERVING)
    with pytest.raises(kilolayer.Unavailable, match="no server is ready, by its health service: it is starting"):
        versions(client, 10_000)
    servers[1].health.set(SERVING)
    client.wait_until_ready(30)
    assert versions(client, 2) == ["b", "b"]


def test_a_dead_server_at_first_does_not_stop_the_others(servers: list[Server]) -> None:
    with kilolayer.PolicyClient(f"127.0.0.1:{free_port()},127.0.0.1:{servers[1].port}", timeout_s=30) as client:
        assert versions(client, 4) == ["b"] * 4


@pytest.mark.parametrize(
    ("address", "balanced"),
    [("policy.example.com:1", True), ("policy:1", True), ("localhost:1", False), ("127.0.0.1:1", False)],
)
def test_a_name_may_stand_for_several_servers(address: str, balanced: bool) -> None:
    """No name has several addresses on every machine, so this looks at the options of the channel."""
    options = dict(Endpoint(address, timeout_s=1).channel_options())
    expected = {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}}
    assert json.loads(options.get("grpc.service_config", "{}")) == (expected if balanced else {})
