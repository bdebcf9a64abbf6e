"""The proxy, between a client and a server that sends every byte back."""

import socket
import threading
import time
from collections.abc import Generator

import pytest

from tests.faults.tcp_proxy import Faults, TcpProxy


class EchoServer:
    """Sends back what each connection sends; knows how its connections ended."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.received: list[bytes] = []
        self.resets = threading.Semaphore(0)
        self.accepted = threading.Semaphore(0)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:  # closed
                return
            self.accepted.release()
            threading.Thread(target=self._echo, args=(peer,), daemon=True).start()

    def _echo(self, peer: socket.socket) -> None:
        with peer:
            try:
                while data := peer.recv(65536):
                    self.received.append(data)
                    peer.sendall(data)
            except ConnectionError:
                self.resets.release()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def echo() -> Generator[EchoServer]:
    server = EchoServer()
    yield server
    server.close()


def connect(proxy: TcpProxy) -> socket.socket:
    host, _, port = proxy.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=60)


def receive(peer: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (chunk := peer.recv(count - len(data))):
        data += chunk
    return data


def test_without_faults_bytes_pass_unchanged(echo: EchoServer) -> None:
    with TcpProxy(echo.address) as proxy, connect(proxy) as first, connect(proxy) as second:
        message = bytes(range(256)) * 1000
        first.sendall(message)
        second.sendall(b"other")
        assert receive(first, len(message)) == message
        assert receive(second, 5) == b"other"
        assert [connection.sent_bytes for connection in proxy.connections] == [len(message), 5]


def test_delay_and_throttle_take_at_least_their_time(echo: EchoServer) -> None:
    slow = [Faults(delay_s=0.05), Faults(bytes_per_s=10_000)]
    with TcpProxy(echo.address, faults=slow.__getitem__) as proxy, connect(proxy) as delayed:
        began_s = time.monotonic()
        delayed.sendall(b"x")
        assert receive(delayed, 1) == b"x"
        assert time.monotonic() - began_s >= 0.1  # there and back
        with connect(proxy) as throttled:
            began_s = time.monotonic()
            throttled.sendall(bytes(1000))
            assert receive(throttled, 1000) == bytes(1000)
            throttled.sendall(b"x")  # waits until the 0.1 s that 1000 bytes take are over
            assert receive(throttled, 1) == b"x"
            assert time.monotonic() - began_s >= 0.1


def test_a_cut_connection_is_reset_on_both_sides_and_others_are_not(echo: EchoServer) -> None:
    with TcpProxy(echo.address) as proxy, connect(proxy) as cut, connect(proxy) as other:
        for peer in (cut, other):
            peer.sendall(b"x")
            assert receive(peer, 1) == b"x"
        proxy.connections[0].cut()
        with pytest.raises(ConnectionResetError):
            cut.recv(1)
        assert echo.resets.acquire(timeout=60)
        other.sendall(b"y")
        assert receive(other, 1) == b"y"


def test_a_connection_is_cut_in_the_middle_of_a_message(echo: EchoServer) -> None:
    with TcpProxy(echo.address, faults=lambda _: Faults(cut_after_bytes=3)) as proxy, connect(proxy) as peer:
        peer.sendall(b"abcdef")
        with pytest.raises(ConnectionResetError):
            receive(peer, 6)
        assert proxy.connections[0].ended.wait(timeout=60)
        assert proxy.connections[0].sent_bytes == 3


def test_a_silent_connection_stays_open_and_passes_nothing_until_it_is_resumed(echo: EchoServer) -> None:
    with TcpProxy(echo.address, faults=lambda number: Faults(silent=number == 0)) as proxy, connect(proxy) as silent:
        silent.sendall(b"held")
        with connect(proxy) as other:  # what this one gets back shows that the proxy is at work
            other.sendall(b"x")
            assert receive(other, 1) == b"x"
        assert echo.received == [b"x"]
        proxy.connections[0].resume()
        assert receive(silent, 4) == b"held"


def test_an_abandoned_server_keeps_its_connection_while_the_client_is_gone(echo: EchoServer) -> None:
    with TcpProxy(echo.address) as proxy, connect(proxy) as gone:
        gone.sendall(b"x")
        assert receive(gone, 1) == b"x"
        proxy.connections[0].abandon()
        with pytest.raises(ConnectionResetError):
            gone.recv(1)
        assert not echo.resets.acquire(blocking=False)
        proxy.connections[0].cut()
        assert echo.resets.acquire(timeout=60)


def test_without_a_server_the_client_is_reset() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # bound, so that nobody else gets the port, and not listening
        target = f"127.0.0.1:{reserved.getsockname()[1]}"
        # the reset may come before the client knows that it is connected
        with TcpProxy(target) as proxy, pytest.raises(ConnectionResetError), connect(proxy) as peer:
            peer.recv(1)
