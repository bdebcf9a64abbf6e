"""The metrics port, and peers that misbehave."""

import socket
import struct
import threading
import time
import urllib.request
from collections.abc import Callable, Generator

import pytest
from prometheus_client import CollectorRegistry, Gauge

from serving.errors import StartupError
from serving.telemetry.metrics_server import MetricsServer, ScrapeHandler


@pytest.fixture
def port() -> Generator[int]:
    """Of a server that shows a gauge `answer` of 42."""
    collectors = CollectorRegistry()
    Gauge("answer", "Of everything.", registry=collectors).set(42)
    server = MetricsServer(collectors, "127.0.0.1", port=0)
    assert server.url == f"http://127.0.0.1:{server.port}/metrics"
    yield server.port
    server.close()


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
        return page.read().decode().splitlines()[-1]


def wait_for(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < ends, "waited for 10 s"
        time.sleep(0.01)


@pytest.mark.parametrize("said", [b"", b"GET /met"])
def test_a_peer_that_resets_its_connection_leaves_no_line(
    port: int, said: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    before = threading.active_count()
    with socket.create_connection(("127.0.0.1", port)) as peer:
        peer.send(said)
        wait_for(lambda: threading.active_count() > before)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing resets
    wait_for(lambda: threading.active_count() == before)
    assert scrape(port) == "answer 42.0"
    assert capfd.readouterr().err == ""


def test_a_peer_that_says_nothing_is_let_go(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScrapeHandler, "timeout", 0.2)
    with socket.create_connection(("127.0.0.1", port)) as peer:
        peer.settimeout(10)
        assert peer.recv(1) == b""
    assert scrape(port) == "answer 42.0"


def test_a_port_that_is_taken_is_named(port: int) -> None:
    with pytest.raises(StartupError, match=f"cannot bind --metrics-port {port} on 127.0.0.1: address in"):
        MetricsServer(CollectorRegistry(), "127.0.0.1", port=port)
