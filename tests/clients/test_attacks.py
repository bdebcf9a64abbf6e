"""A server that is killed, frozen, slow, or leaves in the middle of a reply: the documented exception, then recovery.

No test here measures time. That a call ends is checked with a generous limit, by its exception.
"""

from __future__ import annotations  # for Python 3.9

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator

import pytest

import kilolayer
from kilolayer.v1 import policy_pb2
from tests.clients.fakes import FakePolicy, Relay, free_port

_SERVER = """
import sys
from tests.clients.fakes import FakePolicy, start_server
server, _ = start_server(FakePolicy(), int(sys.argv[1]))
print("ready", flush=True)
sys.stdin.read()
"""
_READY_S = 60.0


class Server:
    """A server in a process of its own, at a port that stays the same."""

    def __init__(self) -> None:
        self.port = free_port()
        self.process = self._start()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def restart(self) -> None:
        self.process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, str(self.port)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.kill()


@contextlib.contextmanager
def callers(address: str, *, timeout_s: float) -> Generator[list[Callable[[float], list[float]]], None, None]:
    """Yield two ways to call: by itself, and on a stream. Each takes x and returns the action for it, [2 * x, 0]."""
    with kilolayer.PolicyClient(address, timeout_s=timeout_s) as client, client.stream() as stream:
        client.wait_until_ready(_READY_S)
        yield [
            lambda x: client.act([x, 0, 0], [0, 0]).action.tolist(),
            lambda x: stream.act([x, 0, 0], [0, 0]).action.tolist(),
        ]


def recover(call: Callable[[float], list[float]]) -> None:
    """Send observations until one is answered, each different; the answer must be that of the last."""
    for number in range(1, 1024):
        with contextlib.suppress(kilolayer.Unavailable, kilolayer.DeadlineExceeded):
            assert call(number / 2048) == [number / 1024, 0]
            return
        time.sleep(0.05)
    raise AssertionError("no call succeeded")


def test_a_frozen_server_is_late_and_its_old_replies_are_dropped(server: Server) -> None:
    with callers(f"127.0.0.1:{server.port}", timeout_s=1) as calls:
        for call in calls:
            recover(call)
        server.process.send_signal(signal.SIGSTOP)
        for call in calls:
            for x in (0.375, 0.25):
                # The client closes a connection that does not answer its pings, perhaps before the deadline.
                with pytest.raises((kilolayer.DeadlineExceeded, kilolayer.Unavailable)):
                    call(x)
        server.process.send_signal(signal.SIGCONT)
        for call in calls:  # the server now answers the old observations, too
            recover(call)


def test_a_killed_server_is_unavailable_until_it_is_back(server: Server) -> None:
    with callers(f"127.0.0.1:{server.port}", timeout_s=60) as calls:
        for call in calls:
            assert call(0.5) == [1, 0]
        server.kill()
        for call in calls:
            with pytest.raises(kilolayer.Unavailable):
                call(0.5)
        server.restart()
        for call in calls:
            recover(call)


@pytest.mark.parametrize("which", [0, 1])
def test_a_connection_that_ends_in_the_middle_of_a_reply(address: str, fake: FakePolicy, which: int) -> None:
    def answer_at_length(reply: policy_pb2.ActResponse) -> None:
        reply.action[:] = [0.5] * 100_000
        reply.action_chunk = 50_000

    with (
        contextlib.closing(Relay(int(address.rpartition(":")[2]))) as relay,
        callers(relay.address, timeout_s=30) as calls,
    ):
        assert calls[which](0.5) == [1, 0]
        fake.on_act = answer_at_length
        relay.cut_after(70_000)
        with pytest.raises(kilolayer.Unavailable):
            calls[which](0.5)
        fake.on_act = lambda _: None
        relay.cut_after(None)
        recover(calls[which])


@pytest.mark.parametrize("which", [0, 1])
def test_a_slow_server_never_gives_an_old_action(address: str, fake: FakePolicy, which: int) -> None:
    release = threading.Event()
    fake.on_act = lambda _: release.wait(30)
    with callers(address, timeout_s=0.25) as calls:
        for x in (0.5, 0.375):
            with pytest.raises(kilolayer.DeadlineExceeded):
                calls[which](x)
        release.set()
        recover(calls[which])
