"""Several workers on one port: a real supervisor and its real workers."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest

from kilolayer.v1 import policy_pb2 as pb
from kilolayer.v1.policy_pb2_grpc import PolicyStub
from serving.config import ServeConfig
from serving.errors import StartupError
from serving.sockets import TcpAddress, hold_port
from serving.workers.supervisor import supervise
from tests.serving.server_process import RUN

GOOD = pb.ActRequest(state=[0] * 4, goal=[0] * 2)


def command_of(policies: Path, *flags: str) -> list[str]:
    """The command of a server with two workers on free ports."""
    ports = ["--listen", "127.0.0.1:0", "--http-port", "0", "--metrics-port", "0"]
    return [sys.executable, str(RUN), "--policies", str(policies), "--workers", "2", *ports, *flags]


class Served:
    """A supervisor with two workers, and what it has logged."""

    def __init__(self, policies: Path, log: Path) -> None:
        command = command_of(policies, "--log-format", "text", "--max-batch-rows", "2")
        environ = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(log.parent)}  # of a program that counts for itself
        self._log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(command, stderr=file, env=environ)
        self.address, self.http, self.metrics = self.wait_for(
            r"ready: grpc=(\S+) http=(\S+) metrics=(\S+) admin=\S+ policies=point_u_maze@1000 workers=2"
        )
        self.health = self.metrics.replace("/metrics", "/healthz")

    def wait_for(self, pattern: str) -> tuple[str, ...]:
        ends = time.monotonic() + 480
        while not (found := re.search(pattern, self.logged())):
            assert time.monotonic() < ends, self.logged()
            assert self.process.poll() is None, self.logged()
            time.sleep(0.05)
        return found.groups()

    def logged(self) -> str:
        return self._log.read_text()

    def call(self, connections: int) -> set[str]:
        """One call on each of so many new connections; the versions that answered."""
        versions: set[str] = set()
        for number in range(connections):
            # A different option makes a connection of its own.
            with grpc.insecure_channel(self.address, options=[("kilolayer.test", number)]) as channel:
                versions.add(PolicyStub(channel).Act(GOOD, timeout=60).version)  # pyright: ignore[reportUnknownArgumentType]
        return versions

    def models(self, connections: int) -> set[str]:
        """One request over HTTP on each of so many new connections; the names of the models that they give."""
        names: set[str] = set()
        for _ in range(connections):
            with urllib.request.urlopen(f"{self.http}/v2/models/point_u_maze", timeout=10) as page:
                names.add(json.loads(page.read())["name"])
        return names

    def http_listeners(self) -> int:
        """How many sockets listen on the HTTP port, by the kernel's table."""
        port = int(self.http.rpartition(":")[2])
        return len(re.findall(rf"^ *\d+: \w+:{port:04X} \w+:0000 0A ", Path("/proc/net/tcp").read_text(), re.MULTILINE))

    def sample(self, name: str) -> float:
        with urllib.request.urlopen(self.metrics, timeout=60) as page:
            (value,) = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", page.read().decode(), re.MULTILINE)
        return float(value)

    def is_healthy(self) -> bool:
        with urllib.request.urlopen(self.health, timeout=60) as page:
            return page.status == 200

    def workers(self) -> set[int]:
        """Process numbers of the workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return {int(pid) for pid in children if b"serving.workers" in Path(f"/proc/{pid}/cmdline").read_bytes()}


@contextmanager
def serving(policies: Path, log: Path) -> Generator[Served]:
    served = Served(policies, log)
    try:
        yield served
    finally:
        served.process.kill()
        served.process.wait()


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_workers_share_a_port_speak_with_one_voice_and_are_replaced(
    policies: Path, publish: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "policies"
    shutil.copytree(policies, folder)
    with serving(folder, tmp_path / "log") as served:
        assert served.call(40) == {"1000"}
        assert served.sample("kilolayer_requests_total") == 40  # of both together
        assert served.sample("kilolayer_rows_total") == 40
        assert served.sample("kilolayer_live_version") == 1000
        assert served.sample("kilolayer_compilations_after_ready_total") == 0
        assert served.sample("kilolayer_workers") == 2
        assert served.is_healthy()
        each = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 for pid in served.workers()]
        assert served.sample("process_resident_memory_bytes") > sum(each)  # the supervisor's too

        before = served.workers()
        victim = min(before)
        signal_number = signal.SIGKILL
        subprocess.run(["kill", f"-{signal_number.value}", str(victim)], check=True)
        served.wait_for(f"worker {victim} ended by signal 9; starting another")
        assert served.call(10) == {"1000"}  # by the other
        assert served.is_healthy()
        served.wait_for(f"worker [0-9]+ serves in place of worker {victim}")
        assert len(served.workers() - before) == 1
        assert served.call(40) == {"1000"}
        assert served.sample("kilolayer_requests_total") == 90
        assert served.sample("kilolayer_workers") == 2

        publish(folder, 2000)
        served.wait_for("point_u_maze: version 2000 is live in place of version 1000")
        assert served.call(40) == {"2000"}
        victim = min(served.workers())
        subprocess.run(["kill", f"-{signal_number.value}", str(victim)], check=True)
        served.wait_for(f"worker [0-9]+ serves in place of worker {victim}")
        assert served.call(40) == {"2000"}
        assert (served.http_listeners(), served.models(10)) == (2, {"point_u_maze"})

        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(timeout=120) == 0
    assert served.logged().count("stopped; every accepted call was answered") == 2
    assert "Traceback" not in served.logged()


@pytest.mark.slow
def test_a_replacement_that_cannot_start_is_tried_again_and_leaves_the_other_worker_alone(
    policies: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "policies"
    shutil.copytree(policies, folder)
    with serving(folder, tmp_path / "log") as served:
        (folder / "1000").rename(tmp_path / "elsewhere")
        (victim, other) = sorted(served.workers())
        os.kill(victim, signal.SIGKILL)
        pattern = "worker ([0-9]+) ended with exit code 1 before it could serve; starting another in 5 s"
        (failed,) = served.wait_for(pattern)
        assert served.call(4) == {"1000"}
        assert not gone(other)
        (tmp_path / "elsewhere").rename(folder / "1000")
        served.wait_for(f"worker [0-9]+ serves in place of worker {victim}")
        assert other in served.workers()
        assert int(failed) not in served.workers()
        assert served.call(10) == {"1000"}
        (folder / "1000").rename(tmp_path / "elsewhere")
        os.kill(max(served.workers() - {other}), signal.SIGKILL)
        served.wait_for(rf"worker (?!{failed} )[0-9]+ ended with exit code 1 before it could serve")
        served.process.send_signal(signal.SIGTERM)  # during the pause
        assert served.process.wait(timeout=120) == 0  # the exit codes of those that never served do not count


@pytest.mark.slow
def test_workers_end_with_their_supervisor(policies: Path, tmp_path: Path) -> None:
    with serving(policies, tmp_path / "log") as served:
        workers = served.workers()
        assert len(workers) == 2
        served.process.kill()
        ends = time.monotonic() + 120
        while not all(map(gone, workers)):
            assert time.monotonic() < ends, served.logged()
            time.sleep(0.05)
    assert served.logged().count("the supervisor process is gone; stopping") == 2


def test_ctrl_c_while_a_worker_imports_libraries_exits_0_without_a_traceback(policies: Path) -> None:
    command = command_of(policies, "--no-metrics")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not any("numpy" in Path(f"/proc/{pid}/maps").read_text() for pid in children.read_text().split()):
            assert process.poll() is None
            time.sleep(0.001)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, errors = process.communicate(timeout=240)
    assert process.returncode == 0
    assert "stopping: refusing new calls" in errors
    assert "Traceback" not in errors  # a worker that has just begun to handle signals may log a line, too


@pytest.mark.slow
def test_a_worker_that_cannot_start_ends_all_with_exit_code_1(policies: Path, tmp_path: Path) -> None:
    shutil.copytree(policies / "1000", tmp_path / "1000")
    (tmp_path / "1000/probes.npz").write_bytes(b"")
    command = command_of(tmp_path, "--no-metrics")
    done = subprocess.run([*command, "--log-format", "text"], capture_output=True, text=True, timeout=480, check=False)
    assert done.returncode == 1
    first, second = done.stderr.splitlines()
    assert re.search(r"ERROR worker \d+: version 1000 of point_u_maze cannot be served: .*probes.npz", first)
    assert re.search(r"ERROR worker \d+ ended with exit code 1 before it could serve", second)


def test_without_room_for_temporary_files_there_is_one_line_and_exit_code_1(
    policies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    config = ServeConfig(policies=(policies,), workers=2, listen="127.0.0.1:0", metrics_port=0, metrics=False)
    assert supervise(config, lambda: config) == 1
    (line,) = caplog.messages
    assert line.endswith("; set TMPDIR to a writable folder with free space")


def test_a_held_port_is_refused_to_a_second_holder_and_free_afterwards() -> None:
    with (
        hold_port(TcpAddress("127.0.0.1", 0)) as address,
        pytest.raises(StartupError, match=f"cannot bind --listen {address}: "),
        hold_port(address),
    ):
        pass
    with hold_port(address) as again:
        assert again == address


def test_a_port_is_held_after_recent_connections_and_against_reuseaddr() -> None:
    with socket.socket() as lone:
        lone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        lone.bind(("127.0.0.1", 0))
        lone.listen()
        port = lone.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            lone.accept()[0].close()  # whoever closes first remembers the connection for a minute
            assert client.recv(1) == b""
    with hold_port(TcpAddress("127.0.0.1", port)), socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))


@pytest.mark.slow  # a supervisor and two workers
def test_the_rows_that_workers_log_are_complete_after_sigterm(
    policies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "rows"
    monkeypatch.setenv("KILOLAYER_LOG_ROWS", f"1:{folder}")
    with serving(policies, tmp_path / "log") as served:
        workers = served.workers()
        assert served.call(40) == {"1000"}
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(timeout=120) == 0
    files = sorted(folder.iterdir())
    by_worker = {int(path.name.split("-")[2]): np.load(path, allow_pickle=False) for path in files}
    assert by_worker.keys() == workers  # one file of each, and nothing else
    assert sum(len(rows["state"]) for rows in by_worker.values()) == 40
