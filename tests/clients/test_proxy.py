"""The variables of a proxy: they must not send a robot's calls astray, and an error names the one that did."""

from __future__ import annotations  # for Python 3.9

import socket
import threading
from collections.abc import Iterator

import grpc
import pytest

import kilolayer
from kilolayer._channel import Endpoint
from tests.clients.fakes import free_port

VARIABLES = [
    *("grpc_proxy", "https_proxy", "http_proxy", "all_proxy"),
    *("GRPC_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"),
]
FAR = "203.0.113.7:50051"  # an address of documentation: nothing is there


class Proxy:
    """An HTTP proxy that forbids everything and records what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            with connection:
                self.asked.append(connection.recv(65536).decode().splitlines()[0])
                connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy that no variable names yet."""
    for name in (*VARIABLES, "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    proxy = Proxy()
    yield proxy
    proxy.close()


@pytest.fixture
def everywhere(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    """A proxy that every variable names."""
    for name in VARIABLES:
        monkeypatch.setenv(name, proxy.url)
    monkeypatch.setenv("GRPC_ADDRESS_HTTP_PROXY", proxy.url.partition("//")[2])
    monkeypatch.setenv("GRPC_ADDRESS_HTTP_PROXY_ENABLED_ADDRESSES", "127.0.0.0/8,10.0.0.0/8")
    return proxy


def test_a_server_on_this_machine_is_called_directly(everywhere: Proxy, address: str) -> None:
    port = address.rpartition(":")[2]
    for each in (address, f"localhost:{port}", f"dns:///localhost:{port}", f"{address},{address}"):
        with kilolayer.PolicyClient(each, timeout_s=30) as client:
            assert client.act([0.5, 0, 0], [0, 0]).action.tolist() == [1, 0]
    assert everywhere.asked == []


async def test_an_async_client_calls_it_directly_too(everywhere: Proxy, address: str) -> None:
    async with kilolayer.AsyncPolicyClient(address, timeout_s=30) as client:
        assert (await client.act([0.5, 0, 0], [0, 0])).action.tolist() == [1, 0]
    assert everywhere.asked == []


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:PORT", "[::1]:PORT", "no-such-robot:1", "no-such-robot.local:1", "unix:/no/such/socket"],
)
def test_an_error_of_a_direct_connection_names_no_proxy(everywhere: Proxy, address: str) -> None:
    with kilolayer.PolicyClient(address.replace("PORT", str(free_port())), timeout_s=30) as client:
        with pytest.raises(kilolayer.KilolayerError) as failure:
            client.act([0, 0, 0], [0, 0])
        assert "proxy" not in str(failure.value)
    assert everywhere.asked == []


@pytest.mark.parametrize(
    "address", ["10.1.2.3:1", "172.16.2.3:1", "192.168.2.3:1", "169.254.2.3:1", "[fd00::1]:1", "[fe80::1]:1", "robot:1"]
)
def test_a_private_address_turns_proxies_off(address: str) -> None:
    """Nobody answers at most of these, so this looks at the options of the channel."""
    options = dict(Endpoint(address, timeout_s=1).channel_options())
    assert options["grpc.enable_http_proxy"] == 0
    assert "grpc.enable_http_proxy" not in dict(Endpoint(FAR, timeout_s=1).channel_options())


@pytest.mark.parametrize("variable", ["grpc_proxy", "https_proxy", "http_proxy"])
def test_an_error_through_a_proxy_names_its_variable(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, proxy.url.replace("//", "//user:s3cret@"))
    with kilolayer.PolicyClient(FAR, timeout_s=30) as client:
        with pytest.raises(kilolayer.Unavailable) as failure:
            client.act([0, 0, 0], [0, 0])
        with pytest.raises(kilolayer.Unavailable) as stream_failure, client.stream() as stream:
            stream.act([0, 0, 0], [0, 0])
    assert proxy.asked[0] == f"CONNECT {FAR} HTTP/1.1"
    complaint = f"The variable {variable} sends this connection to a proxy: unset it, or add 203.0.113.7 to no_proxy."
    for error in (failure, stream_failure):
        assert "HTTP proxy returned response code 403" in str(error.value)
        assert complaint in str(error.value)
        assert "s3cret" not in str(error.value)


def test_a_silent_proxy_is_named_too(monkeypatch: pytest.MonkeyPatch, proxy: Proxy) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{listener.getsockname()[1]}")
        named = pytest.raises(kilolayer.DeadlineExceeded, match="The variable http_proxy sends this connection to a")
        with kilolayer.PolicyClient(FAR, timeout_s=0.05) as client:
            with named:
                client.act([0, 0, 0], [0, 0])
            with named:
                client.wait_until_ready(0.05)


def test_a_servers_own_answer_names_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:1")
    endpoint = Endpoint(FAR, timeout_s=1)
    error = endpoint.failure(
        "Act", grpc.StatusCode.UNAVAILABLE, details="any text", reason="draining", request=None, timeout_s=1
    )
    assert "proxy" not in str(error)
