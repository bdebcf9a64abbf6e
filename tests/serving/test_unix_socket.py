"""A server at a Unix socket: who may connect, and what becomes of the file."""

import asyncio
import contextlib
import fcntl
import os
import re
import socket
import stat
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from prometheus_client import CollectorRegistry

from kilolayer import AsyncPolicyClient
from serving import sockets
from serving.api import grpc_transport
from serving.api.grpc_transport import GrpcTransport
from serving.api.open_call import CALL_BYTES, STREAM_BYTES
from serving.api.rpc import RpcContext
from serving.config import ServeConfig
from serving.errors import StartupError
from serving.loading import load
from serving.sockets import UnixAddress, may_bind, parse_address
from tests.serving.open_service import open_service

ECHO = "/test.Service/Echo"


async def echo(raw: bytes, _context: RpcContext) -> bytes:
    return raw


def transport_of() -> GrpcTransport:
    return GrpcTransport([open_service({"Echo": echo}, {})], max_request_bytes=1000)


async def call(path: Path) -> bytes:
    # Otherwise gRPC would use one connection for all channels to an address.
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(UnixAddress(path).uri, options=options) as channel:
        return await channel.unary_unary(ECHO)(b"hi", timeout=60)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "act.sock"


@contextlib.contextmanager
def listener(path: Path) -> Generator[socket.socket]:
    """A program that listens at `path`, and leaves its file there."""
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen(1)
        yield other


@pytest.mark.parametrize("name", ["act.sock", "50 % #1?.sock", "é:1"])
async def test_only_the_owner_may_connect_and_the_file_is_gone_when_it_has_stopped(tmp_path: Path, name: str) -> None:
    path, umask = tmp_path / name, os.umask(0)
    try:
        transport = transport_of()
        assert await transport.start(UnixAddress(path)) == UnixAddress(path)
        assert path.lstat().st_mode == stat.S_IFSOCK | 0o600
        assert os.umask(0) == 0, "the umask is back"
        assert await call(path) == b"hi"
        await transport.stop(10)
        assert not path.exists()
    finally:
        os.umask(umask)


async def test_the_file_of_a_killed_server_is_replaced(path: Path) -> None:
    with listener(path):
        pass
    transport = transport_of()
    await transport.start(UnixAddress(path))
    assert await call(path) == b"hi"
    await transport.stop(0)


async def test_a_socket_of_a_living_server_is_refused_and_goes_on(path: Path) -> None:
    first, second = transport_of(), transport_of()
    await first.start(UnixAddress(path))
    with pytest.raises(
        StartupError, match=f"^cannot listen on unix:{path}: another program listens there; stop it, or"
    ):
        await second.start(UnixAddress(path))
    await second.stop(0)
    assert await call(path) == b"hi"
    await first.stop(0)


def test_a_living_server_that_accepts_no_connection_is_refused_too(path: Path) -> None:
    with listener(path), contextlib.ExitStack() as peers:
        for _ in range(2):  # fill its queue
            peers.enter_context(socket.socket(socket.AF_UNIX)).connect(str(path))
        with pytest.raises(StartupError, match="another program listens there"):
            may_bind(UnixAddress(path)).__enter__()


@pytest.mark.parametrize("kind", ["file", "link", "datagram"])
def test_what_is_no_socket_of_a_server_is_left_alone(path: Path, kind: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        if kind == "file":
            path.write_text("mine")
        elif kind == "link":
            path.symlink_to("nowhere")
        else:
            datagrams.bind(str(path))
        before = path.lstat()
        problem = "Protocol wrong type for socket" if kind == "datagram" else "it exists and is not a socket; choose an"
        with pytest.raises(StartupError, match=f"^cannot listen on unix:{path}: {problem}"):
            may_bind(UnixAddress(path)).__enter__()
        assert path.lstat() == before


def test_a_folder_that_does_not_exist_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="nowhere/a: No such file or directory; choose a path in a folder that ex"):
        may_bind(UnixAddress(tmp_path / "nowhere" / "a")).__enter__()


def test_of_two_servers_that_start_together_one_waits_for_the_other(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "_LOCK_S", 60.0)
    found: list[str] = []
    may_end = threading.Event()

    def start_late() -> None:
        try:
            with may_bind(UnixAddress(path)):
                found.append("free")
        except StartupError as error:
            found.append(str(error))
        may_end.set()

    second = threading.Thread(target=start_late)
    with may_bind(UnixAddress(path)), socket.socket(socket.AF_UNIX) as first:
        second.start()
        assert not may_end.wait(0.05)
        first.bind(str(path))
        first.listen()
        assert found == []
        # The lock is released with the context, and the first one still listens.
        held = socket.socket(fileno=os.dup(first.fileno()))
    with held:
        second.join(60)
    assert "another program listens there" in found[0]


def test_a_folder_that_stays_locked_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "_LOCK_S", 0.02)
    descriptor = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(StartupError, match=f"another process has locked the folder {path.parent} for 0.02 s; choose"):
        may_bind(UnixAddress(path)).__enter__()
    os.close(descriptor)
    with may_bind(UnixAddress(path)):
        assert not path.exists()


async def test_a_peer_that_reads_no_replies_does_not_stop_the_others(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC gives all connections of a Unix socket the same name."""
    monkeypatch.setattr(grpc_transport, "_STALLED_S", 0.1)

    async def wait(requests: AsyncIterator[bytes], _context: RpcContext) -> AsyncGenerator[bytes]:
        async for request in requests:
            if request == b"answer":
                yield request

    service = open_service({}, {"Stream": wait})
    limit = 6 * (CALL_BYTES + STREAM_BYTES)
    transport = GrpcTransport([service], max_request_bytes=limit, max_held_bytes=limit)
    await transport.start(UnixAddress(path))
    large = b"x" * (limit // 3)  # with what the call itself needs, more than half of what is free
    async with grpc.aio.insecure_channel(UnixAddress(path).uri) as channel, asyncio.timeout(60):
        stalled, other = (channel.stream_stream("/test.Service/Stream")() for _ in range(2))
        await stalled.write(large)
        await other.write(b"answer")
        assert await other.read() == b"answer"
        assert await stalled.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await other.write(b"answer")
        assert await other.read() == b"answer"
        other.cancel()
    await transport.stop(1)


async def test_a_server_at_a_unix_socket_answers_the_client_and_counts_its_connection(
    policies: Path, path: Path
) -> None:
    registry = CollectorRegistry()
    config = ServeConfig(policies=(policies,), listen=f"unix:{path}", metrics_port=0, max_batch_rows=1)
    server = await load(config, collectors=registry)
    await server.start()
    await server.prepare()
    server.open()
    assert server.addresses()["grpc"] == f"unix:{path}"
    assert re.fullmatch(r"http://127.0.0.1:\d+/metrics", server.addresses()["metrics"])
    async with AsyncPolicyClient(server.addresses()["grpc"], timeout_s=10) as client:
        response = await client.act([0.5, 0, 0, 0], [1, 1])
        assert (response.policy, response.version) == ("point_u_maze", "1000")
        assert registry.get_sample_value("kilolayer_connections") == 1
    assert await server.drain()
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("127.0.0.1:50051", "127.0.0.1:50051"),
        ("[::1]:0", "[::1]:0"),
        ("robot.local:080", "robot.local:80"),
        ("unix:/run/a.sock", "unix:/run/a.sock"),
        ("unix:///run/a.sock", "unix:/run/a.sock"),
        ("unix:~/a.sock", "unix:/home/ann/a.sock"),
        ("unix:a.sock", f"unix:{Path.cwd()}/a.sock"),
    ],
)
def test_an_address_is_written_as_clients_take_it(monkeypatch: pytest.MonkeyPatch, text: str, written: str) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    assert str(parse_address(text)) == written
    assert str(parse_address(written)) == written
