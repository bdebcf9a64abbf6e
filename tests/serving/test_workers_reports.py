"""Reports with several workers: forwarded by each, and counted by the supervisor."""

import asyncio

import pytest

from serving.errors import NotReadyError
from serving.policies.episode_reports import EpisodeCounts, EpisodeReport, EpisodeReports, PolicyVersion, ReportStatus
from serving.workers import reports as module
from serving.workers.messages import Answered, Counted, Reported
from serving.workers.reports import ForwardedReports, ReceivedReports
from tests.serving.conftest import wait_until

ONE, TWO = PolicyVersion("maze", 1), PolicyVersion("maze", 2)


class Worker:
    """A worker whose lines reach the supervisor when `deliver` is called."""

    def __init__(self, received: ReceivedReports) -> None:
        self.now_s = 0.0
        self.lines: list[Answered | Reported] = []
        self.sent: list[Answered | Reported] = []
        self.is_full = False
        self.reports = ForwardedReports(self._send, clock=lambda: self.now_s)
        self._received = received

    def _send(self, message: Answered | Reported) -> bool:
        if not self.is_full:
            self.lines.append(message)
            self.sent.append(message)
        return not self.is_full

    def count(self, message: Counted) -> None:
        self.reports.counted(message)

    def deliver(self) -> None:
        while self.lines:
            self._received.receive(self, self.lines.pop(0))

    async def report(self, report: EpisodeReport) -> ReportStatus:
        reporting = asyncio.ensure_future(self.reports.report(report))
        await asyncio.sleep(0)
        self.deliver()
        return await reporting


@pytest.fixture
def counts() -> EpisodeReports:
    return EpisodeReports()


@pytest.fixture
def workers(counts: EpisodeReports) -> tuple[Worker, Worker]:
    received = ReceivedReports(counts)
    return Worker(received), Worker(received)


def report(episode: int, by: PolicyVersion = ONE) -> EpisodeReport:
    return EpisodeReport(by, "robot 7", episode, reached=True, time_at_goal=4)


async def test_a_report_may_reach_another_worker_than_the_requests(
    workers: tuple[Worker, Worker], counts: EpisodeReports
) -> None:
    first, second = workers
    first.reports.answered("robot 7", ONE)
    first.deliver()
    assert await second.report(report(1)) is ReportStatus.ACCEPTED
    assert await first.report(report(1)) is ReportStatus.DUPLICATE
    assert await first.report(report(2)) is ReportStatus.ACCEPTED
    assert counts.counts() == {ONE: EpisodeCounts(2, 2, 8)}


async def test_a_report_that_overtakes_the_line_of_another_worker_counts(
    workers: tuple[Worker, Worker], counts: EpisodeReports
) -> None:
    first, second = workers
    first.reports.answered("robot 7", ONE)
    reporting = asyncio.create_task(second.report(report(1)))
    await asyncio.sleep(0.01)
    first.deliver()
    assert await reporting is ReportStatus.ACCEPTED


async def test_a_report_of_a_robot_that_no_worker_knows_is_unknown(
    workers: tuple[Worker, Worker], counts: EpisodeReports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LINES_S", 0.001)
    first, _ = workers
    first.reports.answered("robot 7", ONE)
    assert await first.report(report(1, by=TWO)) is ReportStatus.UNKNOWN
    assert counts.statuses() == {("maze", ReportStatus.UNKNOWN): 1}


async def test_an_answer_is_a_line_only_now_and_then(workers: tuple[Worker, Worker]) -> None:
    first, _ = workers
    for now_s in (0.0, 5.0, 9.9, 10.0, 15.0):
        first.now_s = now_s
        first.reports.answered("robot 7", ONE)
    first.reports.answered("robot 7", TWO)
    first.reports.answered("robot 8", ONE)
    lines = [("robot 7", 1), ("robot 7", 1), ("robot 7", 2), ("robot 8", 1)]
    assert first.sent == [Answered(robot, "maze", version) for robot, version in lines]


async def test_what_a_worker_remembers_is_bounded(
    workers: tuple[Worker, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_SAID", 2)
    first, _ = workers
    for robot in ("a", "b", "a", "c", "a"):  # at the third robot, the worker forgets the others
        first.reports.answered(robot, ONE)
    assert [line.robot_id for line in first.sent] == ["a", "b", "c", "a"]


async def test_a_supervisor_that_does_not_answer_is_not_waited_for_long(
    workers: tuple[Worker, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_COUNT_S", 0.01)
    first, _ = workers
    with pytest.raises(NotReadyError, match="the server cannot count reports now"):
        await first.reports.report(report(1))
    first.reports.counted(Counted(0, "accepted"))  # too late, and without an effect
    monkeypatch.undo()
    first.reports.answered("robot 7", ONE)
    assert await first.report(report(2)) is ReportStatus.ACCEPTED


async def test_while_the_pipe_is_full_nothing_is_lost(workers: tuple[Worker, Worker], counts: EpisodeReports) -> None:
    first, second = workers
    first.is_full = True
    first.reports.answered("robot 7", ONE)
    first.reports.answered("robot 8", ONE)
    assert first.sent == []
    first.is_full = False
    first.reports.answered("robot 9", ONE)
    assert first.sent == [Answered(f"robot {number}", "maze", 1) for number in (7, 8, 9)]
    first.deliver()
    assert await second.report(report(1)) is ReportStatus.ACCEPTED


async def test_a_report_waits_until_the_pipe_has_room_and_follows_what_is_unsent(
    workers: tuple[Worker, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PIPE_FULL_S", 0.001)
    first, _ = workers
    first.is_full = True
    first.reports.answered("robot 7", ONE)
    reporting = asyncio.ensure_future(first.reports.report(report(1)))
    await asyncio.sleep(0.005)
    first.is_full = False
    await wait_until(lambda: bool(first.lines))
    first.deliver()
    assert await reporting is ReportStatus.ACCEPTED
    assert [type(message) for message in first.sent] == [Answered, Reported]


def test_what_is_unsent_is_bounded_and_said_with_the_next_answer(
    workers: tuple[Worker, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_SAID", 2)
    first, _ = workers
    first.is_full = True
    for number in (7, 8, 9):
        first.reports.answered(f"robot {number}", ONE)
    first.is_full = False
    first.reports.answered("robot 7", ONE)
    assert first.sent == [Answered(f"robot {number}", "maze", 1) for number in (8, 9, 7)]
