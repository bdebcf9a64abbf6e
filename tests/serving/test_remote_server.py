"""Real servers of policies in a bucket: they follow it, outlive its outages, and stop while they wait for it."""

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from kilolayer import PolicyClient
from tests.faults.supervised import Supervised, serve_command
from tests.serving.fake_bucket import FOLDER, FakeBucket
from tests.serving.server_process import launch

Publish = Callable[..., Path]
NAME = "point_u_maze"
pytestmark = pytest.mark.slow


def most_sent(remote: FakeBucket) -> int:
    """How often the same request was sent that gets no reply. It is sent again after 10 s, and given up after 30 s."""
    return max(Counter(request for request in remote.requests if request.startswith(remote.held)).values())


def workers_of(server: Supervised) -> list[int]:
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"serving.workers" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_follows_a_bucket_and_outlives_an_outage(
    remote: FakeBucket, upload: Callable[..., None], publish: Publish, tmp_path: Path, workers: int
) -> None:
    """Robots are answered throughout; a killed worker and a new start find the version that was live."""
    upload(1)
    settings = {"workers": workers, "state_dir": tmp_path / "state"}
    with Supervised(serve_command(remote.url("s3", FOLDER), **settings), log=tmp_path / "log") as server:
        (address,) = server.wait_for(rf"ready: grpc=(\S+) .*policies={NAME}@1")
        damaged = publish(tmp_path / "damaged", 2)
        (damaged / "probes.npz").write_bytes((damaged / "probes.npz").read_bytes()[:-1])
        remote.upload(damaged, f"{FOLDER}/2")
        server.wait_for(r"version 2 of point_u_maze is refused \(hash\), .* probes.npz has .*; upload it again")
        upload(3)
        server.wait_for("version 3 is live in place of version 1")
        remote.is_down = True
        server.wait_for(r"cannot read s3://\S+ .*; trying again later")
        with PolicyClient(address, timeout_s=60) as client:
            assert client.act([0.0] * 4, [0.0] * 2).version == "3"
        if workers > 1:
            os.kill(workers_of(server)[0], signal.SIGKILL)
            server.wait_for(r"worker \d+ serves in place of worker \d+")
        seen = len(server.logged())
        server.kill_all()
        (address,) = server.wait_for(rf"ready: grpc=(\S+) .*policies={NAME}@3", after=seen)
        assert "; starting with the versions that were copied before" in server.logged()
        with PolicyClient(address, timeout_s=60) as client:
            assert client.act([0.0] * 4, [0.0] * 2).version == "3"
        remote.is_down = False
        upload(4)
        server.wait_for("version 4 is live in place of version 3")


@pytest.mark.parametrize("held", ["list", f"get {FOLDER}/1/p"])  # the listing, and the first file of the download
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_that_waits_for_a_bucket_at_its_start_stops_immediately(
    remote: FakeBucket, upload: Callable[..., None], workers: str, held: str
) -> None:
    upload(1)
    remote.held = held
    remote.answers.clear()
    with launch("--policies", f"maze={remote.url('s3', FOLDER)}", "--workers", workers) as process:
        assert remote.waits.wait(480)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=240)
    assert process.returncode == 0
    assert most_sent(remote) <= 2
    assert "Traceback" not in errors


@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_that_serves_and_waits_for_a_bucket_stops_immediately(
    remote: FakeBucket, upload: Callable[..., None], tmp_path: Path, workers: int
) -> None:
    upload(1)
    with Supervised(serve_command(remote.url("s3", FOLDER), workers=workers), log=tmp_path / "log") as server:
        server.wait_for("ready: grpc=")
        remote.held = f"get {FOLDER}/2/p"
        remote.answers.clear()
        upload(2)
        assert remote.waits.wait(480)
        assert server.stop().code == 0
        assert most_sent(remote) <= 2
    assert "Traceback" not in server.logged()
