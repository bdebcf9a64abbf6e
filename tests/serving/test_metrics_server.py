"""The metrics port, and peers that misbehave."""

import contextlib
import http.client
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Gauge

from serving.errors import StartupError
from serving.telemetry.metrics_server import MetricsServer, ScrapeServer


@pytest.fixture
def port() -> Generator[int]:
    """Of a server that shows a gauge `answer` of 42."""
    collectors = CollectorRegistry()
    Gauge("answer", "Of everything.", registry=collectors).set(42)
    server = MetricsServer(collectors, "127.0.0.1", port=0, problem=lambda: "")
    url = f"http://127.0.0.1:{server.port}"
    assert server.addresses() == {"health": f"{url}/healthz", "metrics": f"{url}/metrics"}
    yield server.port
    server.close()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections may take longer than a server lets them: the machine may be busy."""
    monkeypatch.setattr(ScrapeServer, "max_s", 120.0)


def get(port: int, path: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
    """Return the status and the body of a page."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path, headers=headers or {})
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return response.status, body


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as page:
        return page.read().decode().splitlines()[-1]


def wait_for(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends, "waited for 60 s"
        time.sleep(0.01)


def connection_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if "process_request_thread" in thread.name}


def is_closed_to(peer: socket.socket) -> bool:
    """Send a byte, and return whether the server has closed the connection."""
    try:
        peer.send(b"G")
    except OSError:
        return True
    time.sleep(0.05)
    return False


@pytest.mark.parametrize("said", [b"", b"GET /met"])
def test_a_peer_that_resets_its_connection_leaves_no_line(
    port: int, said: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    before = connection_threads()
    with socket.create_connection(("127.0.0.1", port)) as peer:
        peer.send(said)
        wait_for(lambda: len(connection_threads() - before) == 1)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing resets
    wait_for(lambda: not connection_threads() - before)
    assert scrape(port) == "answer 42.0"
    assert capfd.readouterr().err == ""


def test_a_peer_that_says_nothing_or_a_byte_now_and_then_is_let_go(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScrapeServer, "max_s", 0.4)
    with (
        socket.create_connection(("127.0.0.1", port)) as silent,
        socket.create_connection(("127.0.0.1", port)) as slow,
    ):
        wait_for(lambda: is_closed_to(slow))
        silent.settimeout(60)
        assert silent.recv(1) == b""
    monkeypatch.setattr(ScrapeServer, "max_s", 120.0)
    assert scrape(port) == "answer 42.0"


def test_peers_that_say_nothing_hold_a_bounded_number_of_threads_and_block_no_scrape(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ScrapeServer, "max_connections", 4)
    before = connection_threads()
    with contextlib.ExitStack() as opened:
        peers = [opened.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(40)]
        assert scrape(port) == "answer 42.0"
        wait_for(lambda: len(connection_threads() - before) <= 4)
        for peer in peers[:36]:  # the oldest ones
            peer.settimeout(60)
            assert peer.recv(1) == b""
        assert scrape(port) == "answer 42.0"


def test_many_connections_may_wait_to_be_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's default of 5 leaves the seventh without an answer while the server is busy for a moment."""
    go_on, accept = threading.Event(), ScrapeServer.get_request

    def wait_and_accept(server: ScrapeServer) -> tuple[socket.socket, Any]:
        go_on.wait(timeout=120)
        return accept(server)

    monkeypatch.setattr(ScrapeServer, "get_request", wait_and_accept)
    server = MetricsServer(None, "127.0.0.1", port=0, problem=lambda: "")
    with contextlib.ExitStack() as opened:
        for _ in range(100):
            opened.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20))
        go_on.set()
    server.close()


def test_a_port_that_is_taken_is_named(port: int) -> None:
    with pytest.raises(StartupError, match=f"cannot bind --metrics-port {port} on 127.0.0.1: address in use; choose"):
        MetricsServer(CollectorRegistry(), "127.0.0.1", port=port, problem=lambda: "")


def test_health_follows_the_server_and_other_paths_are_not_found() -> None:
    ready: list[bool] = []
    server = MetricsServer(
        CollectorRegistry(), "127.0.0.1", port=0, problem=lambda: "" if ready else "nothing is ready"
    )
    assert get(server.port, "/healthz") == (503, "503 Service Unavailable\nnothing is ready\n")
    ready.append(True)
    assert get(server.port, "/healthz") == (200, "200 OK\n")
    assert get(server.port, "/healthz?verbose=1")[0] == 200
    assert get(server.port, "/metrics") == (200, "")
    for path in ("/", "/metric", "/metrics/x", "/healthz/", "/livez", "/../metrics"):
        assert get(server.port, path) == (404, "404 Not Found\n")
    server.close()


def test_without_metrics_there_is_only_health() -> None:
    server = MetricsServer(None, "127.0.0.1", port=0, problem=lambda: "")
    assert server.addresses() == {"health": f"http://127.0.0.1:{server.port}/healthz"}
    assert get(server.port, "/healthz")[0] == 200
    assert get(server.port, "/metrics")[0] == 404
    server.close()


def test_an_ipv6_host_is_served() -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    server = MetricsServer(None, "::1", port=0, problem=lambda: "")
    url = server.addresses()["health"]
    assert url == f"http://[::1]:{server.port}/healthz"
    with urllib.request.urlopen(url, timeout=60) as page:
        assert page.status == 200
    server.close()


def test_the_health_check_of_the_image_asks_it() -> None:
    dockerfile = (Path(__file__).parents[2] / "Dockerfile").read_text()
    (words,) = re.findall(r"^HEALTHCHECK .* CMD (\[.*\])$", dockerfile, re.MULTILINE)
    python, *arguments = json.loads(words)
    assert python == "python"
    ready: list[bool] = []
    server = MetricsServer(None, "127.0.0.1", port=0, problem=lambda: "" if ready else "nothing is ready")
    environ = os.environ | {"KILOLAYER_METRICS_PORT": str(server.port)}

    def check() -> int:
        return subprocess.run([sys.executable, *arguments], env=environ, timeout=120, check=False).returncode

    assert check() == 1
    ready.append(True)
    assert check() == 0
    server.close()


def test_an_accept_header_that_cannot_be_read_is_a_bad_request_without_a_line(
    port: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert get(port, "/metrics", {"Accept": "application/openmetrics-text;version=a"}) == (
        400,
        "the Accept header cannot be read\n",
    )
    assert get(port, "/metrics", {"Accept": "application/openmetrics-text;version=1.0.0"})[0] == 200
    assert capfd.readouterr().err == ""


def test_a_metric_that_cannot_be_read_is_an_error_in_the_log_only(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    collectors = CollectorRegistry()
    Gauge("broken", "Of everything.", registry=collectors).set_function(lambda: float("x"))
    server = MetricsServer(collectors, "127.0.0.1", port=0, problem=lambda: "")
    assert get(server.port, "/metrics") == (500, "a metric cannot be read; see the log\n")
    assert get(server.port, "/healthz")[0] == 200
    server.close()
    assert caplog.messages == ["a scrape failed"]
    assert "Traceback" not in capfd.readouterr().err


def test_the_port_opens_without_a_question_for_the_name_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getfqdn", lambda *_: pytest.fail("asked for the name of the host"))
    MetricsServer(None, "0.0.0.0", port=0, problem=lambda: "").close()
