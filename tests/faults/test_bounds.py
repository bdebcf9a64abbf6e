"""What one peer can take from a server process: memory, connections, descriptors, and time at its end."""

import dataclasses
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from kilolayer.v1 import policy_pb2 as pb
from kilolayer.v1.policy_pb2_grpc import PolicyStub
from tests.faults import resources
from tests.faults.hostile_messages import HTTP2_HELLO
from tests.serving.server_process import launch

pytestmark = pytest.mark.slow

GREEDY = Path(__file__).parent / "greedy_client.py"
GOOD = pb.ActRequest(state=[0] * 4, goal=[0] * 2)


@dataclasses.dataclass
class ServerProcess:
    """A server process that is ready."""

    process: "subprocess.Popen[str]"
    address: str
    metrics_url: str
    lines: list[str]  # of its log, so far

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def memory_mb(self) -> int:
        return resources.read(self.process.pid).resident_bytes >> 20

    def cpu_s(self) -> float:
        return resources.read(self.process.pid).cpu_s

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(self.metrics_url, timeout=60) as page:
            return float(re.findall(rf"^{name} (\S+)$", page.read().decode(), re.MULTILINE)[0])

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal, and wait until the process has ended with code 0."""
        self.process.send_signal(number)
        assert self.process.wait(timeout=240) == 0, self.lines


@contextmanager
def serving(
    policies: Path, *arguments: str, prefix: Sequence[str] = (), pass_fds: Sequence[int] = ()
) -> Generator[ServerProcess]:
    """A server process that is ready, in a session of its own. Arguments as of `launch`."""
    settings = ["--policies", str(policies), "--max-batch-rows", "1"]
    with launch(*settings, *arguments, prefix=prefix, own_session=True, pass_fds=pass_fds) as process:
        assert process.stderr
        lines: list[str] = []
        for line in process.stderr:
            lines.append(line)
            if ready := re.search(r"ready: grpc=(\S+) metrics=(\S+)", line):
                threading.Thread(target=lines.extend, args=(iter(process.stderr),), daemon=True).start()
                yield ServerProcess(process, ready[1], ready[2], lines)
                return
        raise AssertionError(f"it ended before it was ready: {lines}")


@pytest.fixture(scope="module")
def server(policies: Path) -> Iterator[ServerProcess]:
    with serving(policies) as server:
        yield server


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for at most four minutes: the machine may be busy."""
    ends_s = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < ends_s, "not within 240 s"
        time.sleep(0.1)


def closed(peer: socket.socket) -> bool:
    """Whether the server has closed the connection; whatever it sent is read."""
    peer.setblocking(False)
    try:
        while peer.recv(65536):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True


def test_a_client_that_never_reads_is_bounded_and_its_memory_returns(policies: Path) -> None:
    """400 streams send up to 75 requests of 4,096 rows each: 3 GB in all, and 1 GB of replies."""
    with serving(policies, "--max-batch-rows", "64", "--max-held-mb", "128") as server:
        channel = grpc.insecure_channel(server.address)
        stub: Any = PolicyStub(channel)
        for _ in range(20):
            stub.Act(GOOD, timeout=60)
        before_mb, most_mb, answered = server.memory_mb(), 0, 0
        command = [sys.executable, str(GREEDY), server.address, "400", "75", "4096"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
            try:
                assert client.stdout
                ended: list[str] = []
                threading.Thread(target=ended.extend, args=(iter(client.stdout),), daemon=True).start()
                ends_s = time.monotonic() + 240
                while not ended and time.monotonic() < ends_s:
                    most_mb = max(most_mb, server.memory_mb())
                    time.sleep(0.1)
                answered = sum(answers(stub) for _ in range(20))  # the others, while the client still holds on
            finally:
                client.kill()
        assert ended
        assert most_mb < before_mb + 300
        assert answered == 20
        wait_until(lambda: server.metric("kilolayer_held_bytes") < 100e3)
        wait_until(lambda: server.memory_mb() < before_mb + 100)
        assert server.metric("kilolayer_memory_limit_total") >= len(ended)
        channel.close()
        server.end()


def answers(stub: Any) -> bool:
    try:
        stub.Act(GOOD, timeout=60)
    except grpc.RpcError:
        return False
    return True


def test_ten_thousand_calls_on_one_connection_get_explicit_answers(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.address) as channel:
        stub: Any = PolicyStub(channel)
        request = pb.ActRequest(state=[0] * 4 * 64, goal=[0] * 2)
        calls = [stub.Act.future(request, timeout=600) for _ in range(10_000)]
        outcomes = {(call.code(), dict(call.trailing_metadata() or {}).get("kilolayer-reason")) for call in calls}
    exhausted = grpc.StatusCode.RESOURCE_EXHAUSTED
    allowed = {
        (grpc.StatusCode.OK, None),
        (exhausted, "queue_full"),
        (exhausted, "queue_age"),
        (exhausted, "memory_limit"),
        (exhausted, "deadline_too_short"),  # on a busy machine, sending them all takes most of the deadline
    }
    assert (exhausted, "queue_full") in outcomes
    assert outcomes <= allowed


def test_silent_and_stopped_peers_are_closed(server: ServerProcess) -> None:
    """Within 20 s, as `serving/test_grpc_transport.py` finds in the options; by gRPC's defaults, after minutes."""
    program = (
        "import grpc, sys, time; channel = grpc.insecure_channel(sys.argv[1]);"
        "grpc.channel_ready_future(channel).result(); print('ready', flush=True); time.sleep(600)"
    )
    wait_until(lambda: server.metric("kilolayer_connections") == 0)
    with subprocess.Popen([sys.executable, "-c", program, server.address], stdout=subprocess.PIPE) as client:
        try:
            assert client.stdout
            assert client.stdout.readline() == b"ready\n"
            wait_until(lambda: server.metric("kilolayer_connections") == 1)
            client.send_signal(signal.SIGSTOP)
            with (
                socket.create_connection(("127.0.0.1", server.port)) as without_handshake,
                socket.create_connection(("127.0.0.1", server.port)) as silent,
            ):
                silent.sendall(HTTP2_HELLO)
                wait_until(lambda: closed(without_handshake))
                wait_until(lambda: closed(silent))
            wait_until(lambda: server.metric("kilolayer_connections") == 0)
        finally:
            client.kill()


def test_a_dead_connection_does_not_keep_a_server_from_its_end(policies: Path) -> None:
    """That it delays the end by at most a second is proven in `serving/test_server.py`."""
    with serving(policies) as server, socket.create_connection(("127.0.0.1", server.port)) as peer:
        peer.sendall(HTTP2_HELLO)
        wait_until(lambda: server.metric("kilolayer_connections") == 1)
        server.end()
        wait_until(lambda: any("every accepted call was answered" in line for line in server.lines))


def limited(setting: str) -> list[str]:
    """A command that executes its arguments with a limit of the shell."""
    return ["sh", "-c", f'{setting}; exec "$@"', "sh"]


def test_without_free_descriptors_there_is_one_warning_and_no_thread_spins(policies: Path) -> None:
    with serving(policies, prefix=limited("ulimit -n 256; ulimit -Sn 128")) as server, ExitStack() as peers:
        limits = Path(f"/proc/{server.process.pid}/limits").read_text()
        assert re.search(r"Max open files +256 +256 ", limits)  # the soft limit was raised
        for _ in range(300):
            peers.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        wait_until(lambda: any("file descriptors are in use" in line for line in server.lines))
        assert server.metric("kilolayer_connections") > 100  # the metrics port still answers
        before_s, started_s = server.cpu_s(), time.monotonic()
        time.sleep(2)
        assert server.cpu_s() - before_s < 0.25 * (time.monotonic() - started_s)
        assert sum("file descriptors are in use" in line for line in server.lines) == 1
        wait_until(lambda: server.metric("kilolayer_connections") == 0)  # all are silent
        with grpc.insecure_channel(server.address) as channel:
            stub: Any = PolicyStub(channel)
            stub.Act(GOOD, timeout=60, wait_for_ready=True)
        server.end()


def test_sighup_without_a_terminal_reads_the_settings_again_and_ends_nothing(server: ServerProcess) -> None:
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: any("reading the settings again" in line for line in server.lines))
    with grpc.insecure_channel(server.address) as channel:
        stub: Any = PolicyStub(channel)
        assert len(stub.Act(GOOD, timeout=60).action) == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_sighup_in_a_terminal_drains_the_server(policies: Path, workers: int) -> None:
    master, slave = pty.openpty()
    program = (
        "import fcntl, os, signal, sys, termios; fcntl.ioctl(int(sys.argv[1]), termios.TIOCSCTTY, 0);"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL); os.execv(sys.argv[2], sys.argv[2:])"
    )
    prefix = [sys.executable, "-c", program, str(slave)]
    with serving(policies, "--workers", str(workers), prefix=prefix, pass_fds=[slave]) as server:
        os.killpg(server.process.pid, signal.SIGHUP)  # as the kernel does when the terminal is closed
        assert server.process.wait(timeout=240) == 0
        wait_until(lambda: any("every accepted call was answered" in line for line in server.lines))
    os.close(master)
    os.close(slave)
