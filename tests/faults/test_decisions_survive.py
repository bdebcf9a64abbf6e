"""Killed workers and killed servers come up with what operators had decided."""

import os
import signal
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path

import pytest

from serving.policies.canary import CanaryShare
from tests.clients.fakes import free_port
from tests.faults.conftest import publish
from tests.faults.remote_admin import Decisions, RemoteAdmin, versions_of_robots
from tests.faults.supervised import Supervised, serve_command

pytestmark = pytest.mark.slow
READY = r"ready: grpc=(\S+) .*admin=(\S+) policies="
ROBOTS = [f"robot {number}" for number in range(24)]  # that all reach the same one of two workers is improbable
SHARE = 0.5
_, ROLLBACK, CANARY, FOLLOW = range(4)  # the decisions of `decide`


def decide(admin: RemoteAdmin, folder: Path) -> Iterator[Decisions]:
    """Decide one thing after the other about versions 1000 and 2000; yield what must hold by then."""
    admin.wait_for(Decisions(2000, following=True))
    admin.switch(1000)
    yield Decisions(1000, previous=(2000,))
    admin.rollback()
    yield Decisions(2000)
    admin.canary(1000, SHARE)
    yield Decisions(2000, canary=(1000, SHARE))
    admin.end_canary()
    assert admin.follow(on=True) == "2000"  # the live one is the newest
    publish(folder, 3000)
    followed = Decisions(3000, previous=(2000,), following=True)
    admin.wait_for(followed)
    yield followed


def answers(expected: Decisions) -> dict[str, str]:
    """The version that each robot must get."""
    if expected.canary is None:
        return dict.fromkeys(ROBOTS, str(expected.live))
    version, share = expected.canary
    assignment = CanaryShare(policy="point_u_maze", candidate=version, share=share)
    found = {robot: str(version if assignment.gets_candidate(robot) else expected.live) for robot in ROBOTS}
    assert set(found.values()) == {str(version), str(expected.live)}
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for version in (1000, 2000):
        publish(tmp_path / "policies", version)
    return tmp_path / "policies"


def check(folder: Path, server: Supervised, kill: Callable[[Supervised], None], *, after: Container[int]) -> None:
    """Decide one thing after the other, and compare; kill `after` some decisions, and compare again."""
    address, socket = server.wait_for(READY)
    admin = RemoteAdmin(socket)
    for number, expected in enumerate(decide(admin, folder)):
        assert admin.decisions() == expected
        assert versions_of_robots(address, ROBOTS) == answers(expected)
        if number not in after:
            continue
        kill(server)
        admin.wait_for(expected)
        assert versions_of_robots(address, ROBOTS) == answers(expected)
    publish(folder, 4000)  # the last decision was to follow
    admin.wait_for(Decisions(4000, previous=(3000, 2000), following=True))
    assert set(versions_of_robots(address, ROBOTS).values()) == {"4000"}
    assert "Traceback" not in server.logged()


def kill_server(server: Supervised) -> None:
    known = len(server.logged())
    server.kill_all()
    server.wait_for(READY, after=known)
    assert "live versions as before the restart: point_u_maze@" in server.logged()[known:]


def kill_worker(server: Supervised) -> None:
    known = len(server.logged())
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    worker = next(pid for pid in children if b"serving.workers" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(int(worker), signal.SIGKILL)
    server.wait_for(rf"serves in place of worker {worker}\b", after=known)


@pytest.mark.parametrize(("workers", "after"), [(1, range(4)), (2, (CANARY, FOLLOW))])
def test_a_killed_server_comes_up_with_the_same_decisions(
    folder: Path, tmp_path: Path, workers: int, after: Sequence[int]
) -> None:
    """The state is at the default place, by the port."""
    command = serve_command(folder, listen=f"127.0.0.1:{free_port()}", workers=workers)
    with Supervised(command, log=tmp_path / "log") as server:
        check(folder, server, kill_server, after=after)
        assert [each.code for each in server.exits] == [-signal.SIGKILL] * len(after)


def test_a_killed_worker_is_replaced_by_one_with_the_same_decisions(folder: Path, tmp_path: Path) -> None:
    with Supervised(serve_command(folder, workers=2), log=tmp_path / "log") as server:
        check(folder, server, kill_worker, after=(ROLLBACK, CANARY, FOLLOW))
        assert server.exits == []
    assert server.logged().count("serves in place of worker") == 3


def test_two_servers_of_one_folder_keep_their_own_decisions(folder: Path, tmp_path: Path) -> None:
    """One is rolled back, the other is not; they share the folders for states and admin sockets."""
    one, other = (
        Supervised(serve_command(folder, listen=f"127.0.0.1:{free_port()}"), log=tmp_path / name)
        for name in ("one", "other")
    )
    with one, other:
        servers = {server: RemoteAdmin(server.wait_for(READY)[1]) for server in (one, other)}
        servers[one].switch(1000)
        servers[one].rollback()
        for server in servers:
            kill_server(server)
        servers[one].wait_for(Decisions(2000, following=False))
        servers[other].wait_for(Decisions(2000, following=True))
        publish(folder, 3000)
        servers[other].wait_for(Decisions(3000, previous=(2000,), following=True))
        assert servers[one].decisions() == Decisions(2000, following=False)
