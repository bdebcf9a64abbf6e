"""RemoteAdmin: what an operator asks of a running server, and what its robots then get.

with Supervised(serve_command(policies), log=tmp_path / "log") as server:
    address, socket = server.wait_for(r"ready: grpc=(\\S+) .* admin=(\\S+)")
    admin = RemoteAdmin(socket)
    admin.switch(1000)
    assert versions_of_robots(address, ["a", "b"]) == {"a": "1000", "b": "1000"}
"""

import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any, Self

import grpc

from kilolayer.v1 import admin_pb2 as admin
from kilolayer.v1 import policy_pb2 as pb
from kilolayer.v1.admin_pb2_grpc import PolicyAdminStub
from kilolayer.v1.policy_pb2_grpc import PolicyStub

_CALL_S = 60.0  # a busy machine; the calls themselves take milliseconds
_WAIT_S = 300.0
_POLL_S = 0.05


@dataclasses.dataclass(frozen=True)
class Decisions:
    """What is decided about a policy."""

    live: int
    previous: tuple[int, ...] = ()  # the most recent first
    following: bool = False
    canary: tuple[int, float] | None = None  # its version and its share

    @classmethod
    def of(cls, status: admin.PolicyStatus) -> Self:
        """Return what a status says."""
        canary = (
            (int(status.canary.version), status.canary.share)
            if status.HasField("canary") and not status.canary.loading
            else None
        )
        return cls(int(status.live_version), tuple(map(int, status.previous_versions)), status.following, canary)


class RemoteAdmin:
    """Calls the admin service of a server with one policy, each time over a new connection: the server may restart.

    Args:
        address: of the service, as the server's ready line shows it.
    """

    def __init__(self, address: str) -> None:
        self._address = address

    def decisions(self) -> Decisions:
        """Return what is decided now."""
        return Decisions.of(self.status())

    def status(self) -> admin.PolicyStatus:
        """Return the status of the policy."""
        return self._call("Status", admin.StatusRequest()).policies[0]

    def switch(self, version: int) -> Decisions:
        """Make a version live."""
        return Decisions.of(self._call("Switch", admin.SwitchRequest(version=str(version))).policy)

    def rollback(self) -> Decisions:
        """Make the former live version live."""
        return Decisions.of(self._call("Rollback", admin.RollbackRequest()).policy)

    def follow(self, *, on: bool) -> str:
        """Take up new versions from now on, or no longer. Return the one that is taken up now, or the live one."""
        return self._call("Follow", admin.FollowRequest(off=not on)).next_version

    def canary(self, version: int, share: float) -> Decisions:
        """Let a version answer a share of the robots."""
        return Decisions.of(self._call("Canary", admin.CanaryRequest(version=str(version), share=share)).policy)

    def end_canary(self) -> Decisions:
        """Answer all robots with the live version."""
        return Decisions.of(self._call("Canary", admin.CanaryRequest(off=True)).policy)

    def wait_for(self, expected: Decisions) -> None:
        """Wait until this is decided, and what was loaded before a restart is loaded."""
        wait_until(lambda: self.decisions() == expected, lambda: f"{self.decisions()} instead of {expected}")

    def _call(self, method: str, request: object) -> Any:
        with grpc.insecure_channel(self._address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            return getattr(PolicyAdminStub(channel), method)(request, timeout=_CALL_S)


def versions_of_robots(address: str, robots: Iterable[str]) -> dict[str, str]:
    """Return the version that answers each robot, each over a connection of its own, so that all workers are asked."""
    return {robot: _version(address, robot) for robot in robots}


def wait_until(condition: Callable[[], bool], about: Callable[[], str]) -> None:
    """Wait until a condition holds; `about` says what holds instead, after 300 s."""
    ends_s = time.monotonic() + _WAIT_S
    while not condition():
        assert time.monotonic() < ends_s, f"{about()} after {_WAIT_S:g} s"
        time.sleep(_POLL_S)


def _version(address: str, robot: str) -> str:
    request = pb.ActRequest(state=[0.5, -1, 2, 0], goal=[1, 1], robot_id=robot)
    with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        return PolicyStub(channel).Act(request, timeout=_CALL_S).version
