"""A canary of a server that runs, with robots that report: in one process, and in two on one port."""

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from kilolayer import PolicyClient
from kilolayer.v1 import policy_pb2 as pb
from kilolayer.v1.policy_pb2_grpc import PolicyStub
from serving.policies.canary import CanaryShare
from tests.faults.remote_admin import RemoteAdmin
from tests.serving.conftest import SPEC, Publish
from tests.serving.server_process import ready

ADMIN = Path(__file__).parents[2] / "serving" / "admin.py"
STATE, GOAL = [0.0] * 4, [0.0] * 2


class Robot:
    """A robot whose reports come over a connection of its own. All requests share one, and so one worker."""

    def __init__(self, address: str, number: int, clients: ExitStack) -> None:
        self.name = f"robot {number}"
        self._client = clients.enter_context(PolicyClient(address, robot_id=self.name, timeout_s=60))
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._reporting = PolicyStub(clients.enter_context(grpc.insecure_channel(address, options=options)))
        self._episode = 0

    def act(self) -> str:
        """The version that answers."""
        return self._client.act(STATE, GOAL).version

    def report(self, version: str, *, reached: bool) -> int:
        self._episode += 1
        report = pb.ReportRequest(version=version, robot_id=self.name, episode=self._episode, reached=reached)
        return self._reporting.Report(report, timeout=60).status


@contextmanager
def serving(tmp_path: Path, publish: Publish, *, workers: int) -> Generator[tuple[str, str]]:
    """A server with version 1 live and version 2 on disk: its address, and that of its metrics."""
    publish(tmp_path / "policies", 1)
    settings = ("--no-follow", "--state-dir", f"{tmp_path}/state", "--admin", f"unix:{tmp_path}/admin.sock")
    arguments = ("--policies", f"{tmp_path}/policies", "--workers", str(workers), *settings)
    with ready(*arguments) as (process, address, lines):
        publish(tmp_path / "policies", 2)
        found = re.search(r"metrics=(\S+)", lines[-1])
        assert found
        yield address, found[1]
        process.terminate()
        assert process.wait(timeout=120) == 0


def administer(tmp_path: Path, *words: str) -> dict[str, Any]:
    command = [sys.executable, str(ADMIN), *words, "--json", "--admin", f"unix:{tmp_path}/admin.sock"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=240).stdout)
    return found.get("policy") or found["policies"][0]


def metric(url: str, name: str) -> float:
    with urllib.request.urlopen(url, timeout=60) as page:
        line = re.search(rf"^kilolayer_{name} (\S+)$", page.read().decode(), re.MULTILINE)
    return float(line[1]) if line else 0.0


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "better"), [(1, False), (2, True)], ids=["alone", "two workers"])
def test_robots_keep_their_versions_until_their_reports_decide(
    tmp_path: Path, publish: Publish, *, workers: int, better: bool
) -> None:
    with serving(tmp_path, publish, workers=workers) as (address, metrics):
        let_reports_decide(tmp_path, address, metrics, better=better)


def let_reports_decide(tmp_path: Path, address: str, metrics: str, *, better: bool) -> None:
    admin = RemoteAdmin(f"unix:{tmp_path}/admin.sock")
    assignment = CanaryShare(policy=SPEC.name, candidate=2, share=0.5)
    with ExitStack() as clients:
        robots = [Robot(address, number, clients) for number in range(16)]
        assert {robot.act() for robot in robots} == {"1"}
        status = administer(tmp_path, "canary", "2", "--share", "0.5", "--decide", "--min-episodes", "5")
        assert status["canary"]["version"] == "2"
        chosen = {robot.name: "2" if assignment.gets_candidate(robot.name) else "1" for robot in robots}
        assert set(chosen.values()) == {"1", "2"}
        statuses: set[int] = set()
        ends = time.monotonic() + 240
        while admin.decisions().canary:
            assert time.monotonic() < ends
            for robot in robots:
                version = robot.act()
                if version != chosen[robot.name]:
                    break  # the canary has just ended
                statuses.add(robot.report(version, reached=(version == "2") is better))
        live = "2" if better else "1"
        assert administer(tmp_path, "status")["live_version"] == live
        assert {robot.act() for robot in robots} == {live}
    assert statuses == {pb.REPORT_STATUS_ACCEPTED}
    verdict = "better" if better else "worse"
    assert metric(metrics, f'canary_verdicts_total{{policy="{SPEC.name}",verdict="{verdict}"}}') == 1
    episodes = metric(metrics, f'episodes_total{{policy="{SPEC.name}",version="2"}}')
    assert episodes >= 5
    reached = metric(metrics, f'episodes_reached_total{{policy="{SPEC.name}",version="2"}}')
    assert reached == (episodes if better else 0)
