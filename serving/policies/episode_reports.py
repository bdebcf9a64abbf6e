"""EpisodeReports: how episodes of robots ended, counted by policy and version.

A report counts if the version has answered the robot, and once for each robot and episode number. What is kept is
bounded: robots, versions of each robot, and versions with counts. The least recently used are dropped. The episode
numbers of a robot are kept as the highest one and a window of bits below it, as in the protection of IPsec against
replayed packets (RFC 4303, section 3.4.3). So a number never counts twice, whatever a robot sends.
"""

import enum
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

_WINDOW = 64  # episode numbers, up to the highest, that may still be reported in any order
_VERSIONS_OF_A_ROBOT = 8


class PolicyVersion(NamedTuple):
    """One version of one policy."""

    policy: str
    version: int


class EpisodeReport(NamedTuple):
    """How one episode of a robot ended."""

    answered_by: PolicyVersion  # the version that gave the actions
    robot_id: str
    episode: int  # the robot's number for it, at least 0
    reached: bool  # whether the robot was within the success radius at the last step
    time_at_goal: int  # control periods within the success radius


class ReportStatus(enum.StrEnum):
    """What became of a report."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    """The episode was reported before, or its number is far below the robot's highest one."""

    UNKNOWN = "unknown"
    """The version has not answered the robot, or that was so long ago that it is forgotten."""


class Receipt(NamedTuple):
    """What became of a report, and when the robot's report before it was accepted; None: it is the first one."""

    status: ReportStatus
    previous_s: float | None


class EpisodeCounts(NamedTuple):
    """The sums over the accepted reports of one version."""

    episodes: int = 0
    reached: int = 0
    time_at_goal: int = 0  # control periods


class ReportSink(Protocol):
    """Takes reports, and what is needed to check them."""

    def answered(self, robot_id: str, version: PolicyVersion) -> None:
        """Remember that `version` has answered the robot `robot_id`, which is not empty."""
        ...

    async def report(self, report: EpisodeReport) -> ReportStatus:
        """Count `report`, unless it is a duplicate or its robot is unknown."""
        ...


class EpisodeReports:
    """Counts the reports of episodes.

    Args:
        max_robots: robots that are remembered.
        max_versions: versions whose counts are kept.
        clock: monotonic seconds.
    """

    def __init__(
        self, *, max_robots: int = 10_000, max_versions: int = 100, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_robots = max_robots
        self._max_versions = max_versions
        self._clock = clock
        self._robots: OrderedDict[str, _Robot] = OrderedDict()  # the least recently used first
        self._counts: dict[PolicyVersion, EpisodeCounts] = {}  # likewise
        self._statuses: Counter[tuple[str, ReportStatus]] = Counter()
        self.on_accepted: Callable[[EpisodeReport, Receipt], None] = lambda _report, _receipt: None
        """Called with each report that counts."""

    def answered(self, robot_id: str, version: PolicyVersion) -> None:
        """Remember that `version` has answered the robot `robot_id`, which is not empty."""
        robot = self._robots.get(robot_id)
        if robot is None:
            robot = self._robots[robot_id] = _Robot()
            if len(self._robots) > self._max_robots:
                self._robots.popitem(last=False)
        else:
            self._robots.move_to_end(robot_id)
        robot.answered(version)

    def knows(self, robot_id: str, version: PolicyVersion) -> bool:
        """Return whether `version` has answered the robot `robot_id`, and that is not forgotten."""
        robot = self._robots.get(robot_id)
        return robot is not None and version in robot.versions

    async def report(self, report: EpisodeReport) -> ReportStatus:
        """As `record`, for a method of the server."""
        return self.record(report).status

    def record(self, report: EpisodeReport) -> Receipt:
        """Count `report`, unless it is a duplicate or its robot is unknown."""
        receipt = self._receive(report)
        self._statuses[report.answered_by.policy, receipt.status] += 1
        if receipt.status is ReportStatus.ACCEPTED:
            self._count(report)
            self.on_accepted(report, receipt)
        return receipt

    def counts(self) -> Mapping[PolicyVersion, EpisodeCounts]:
        """Return the counts of each version that has any."""
        return self._counts.copy()  # in one step, since metrics are collected in another thread

    def statuses(self) -> Mapping[tuple[str, ReportStatus], int]:
        """Return the number of reports by policy and status."""
        return self._statuses.copy()

    def _receive(self, report: EpisodeReport) -> Receipt:
        if not self.knows(report.robot_id, report.answered_by):
            return Receipt(ReportStatus.UNKNOWN, None)
        robot = self._robots[report.robot_id]
        self._robots.move_to_end(report.robot_id)
        previous_s = robot.reported_s
        if not robot.episodes.add(report.episode):
            return Receipt(ReportStatus.DUPLICATE, previous_s)
        robot.reported_s = self._clock()
        return Receipt(ReportStatus.ACCEPTED, previous_s)

    def _count(self, report: EpisodeReport) -> None:
        before = self._counts.pop(report.answered_by, EpisodeCounts())
        self._counts[report.answered_by] = EpisodeCounts(
            before.episodes + 1, before.reached + report.reached, before.time_at_goal + report.time_at_goal
        )
        if len(self._counts) > self._max_versions:
            del self._counts[next(iter(self._counts))]


class _Robot:
    """What is remembered of one robot."""

    __slots__ = ("episodes", "reported_s", "versions")

    def __init__(self) -> None:
        self.versions: deque[PolicyVersion] = deque(maxlen=_VERSIONS_OF_A_ROBOT)  # that answered it, the latest last
        self.episodes = _EpisodeNumbers()
        self.reported_s: float | None = None  # when its last report was accepted

    def answered(self, version: PolicyVersion) -> None:
        """Make `version` the latest that has answered."""
        if not self.versions or self.versions[-1] != version:
            if version in self.versions:
                self.versions.remove(version)
            self.versions.append(version)


class _EpisodeNumbers:
    """A set of numbers, in which those far below the highest one count as present."""

    __slots__ = ("_highest", "_present")

    def __init__(self) -> None:
        self._highest = -1
        self._present = 0  # the bit i: whether `_highest` - i is present

    def add(self, number: int) -> bool:
        """Add `number`, at least 0. Return whether it was absent."""
        below = self._highest - number
        if below < 0:
            self._present = self._present << min(-below, _WINDOW) & (1 << _WINDOW) - 1 | 1
            self._highest = number
            return True
        if below >= _WINDOW or self._present >> below & 1:
            return False
        self._present |= 1 << below
        return True
