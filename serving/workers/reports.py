"""Reports of episodes with several workers: the workers forward them, and the supervisor counts.

A robot's requests and its reports may reach different workers. The supervisor therefore has the only `EpisodeReports`.
Each worker tells it which version has answered which robot: with the first answer, and then every 10 s, so that a robot
that is active is not forgotten. A worker writes that line before it sends the answer, so the supervisor can read it
before any report that follows the answer. Reports of robots that it does not know yet wait a moment for such lines. A
line for which the pipe is full is kept, and sent before the next answer or report.
"""

import asyncio
import itertools
import time
from collections.abc import Callable
from typing import Protocol

from serving.errors import NotReadyError
from serving.policies.episode_reports import EpisodeReport, EpisodeReports, PolicyVersion, ReportStatus
from serving.workers.messages import Answered, Counted, Reported

_AGAIN_S = 10.0  # until a worker says again that a version has answered a robot
_MAX_SAID = 20_000  # pairs of robot and version that a worker remembers
_LINES_S = 0.1  # for the lines of other workers to be read
_PIPE_FULL_S = 0.05  # until a report is sent again
_COUNT_S = 5.0  # for the supervisor to count a report


class ForwardedReports:
    """The reports of one worker, as a `serving.policies.episode_reports.ReportSink`.

    Args:
        send: sends a message to the supervisor; returns False if the pipe to the supervisor is full.
        clock: monotonic seconds.
    """

    def __init__(
        self, send: Callable[[Answered | Reported], bool], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._send = send
        self._clock = clock
        self._said_s: dict[tuple[str, PolicyVersion], float] = {}  # when
        self._unsent: dict[tuple[str, PolicyVersion], None] = {}  # the oldest first
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[ReportStatus]] = {}

    def answered(self, robot_id: str, version: PolicyVersion) -> None:
        """Tell the supervisor that `version` has answered `robot_id`, unless it was told a short time ago."""
        now_s, key = self._clock(), (robot_id, version)
        said_s = self._said_s.get(key)
        if said_s is not None and now_s - said_s < _AGAIN_S:
            return
        if len(self._said_s) >= _MAX_SAID:
            self._said_s.clear()
        self._said_s[key] = now_s
        self._unsent[key] = None
        if not self._send_unsent() and len(self._unsent) > _MAX_SAID:
            oldest = next(iter(self._unsent))
            del self._unsent[oldest]
            self._said_s.pop(oldest, None)  # so it is said with the robot's next answer

    async def report(self, report: EpisodeReport) -> ReportStatus:
        """Let the supervisor count `report`.

        Raises:
            NotReadyError: the supervisor does not answer.
        """
        number = next(self._numbers)
        counted = self._waiting[number] = asyncio.get_running_loop().create_future()
        policy, version = report.answered_by
        message = Reported(
            number, policy, version, report.robot_id, report.episode, report.reached, report.time_at_goal
        )
        try:
            async with asyncio.timeout(_COUNT_S):
                while not (self._send_unsent() and self._send(message)):  # noqa: ASYNC110  a pipe sets no event
                    await asyncio.sleep(_PIPE_FULL_S)
                return await counted
        except TimeoutError as error:
            raise NotReadyError("the server cannot count reports now") from error
        finally:
            del self._waiting[number]

    def _send_unsent(self) -> bool:
        """Say which versions have answered which robots. Return False if the pipe is full before all is said."""
        while self._unsent:
            robot_id, version = key = next(iter(self._unsent))
            if not self._send(Answered(robot_id, version.policy, version.version)):
                return False
            del self._unsent[key]
        return True

    def counted(self, message: Counted) -> None:
        """Take the supervisor's answer to a report."""
        waiting = self._waiting.get(message.number)
        if waiting and not waiting.done():
            waiting.set_result(ReportStatus(message.status))


class CountingWorker(Protocol):
    """The part of a `serving.workers.worker_process.WorkerProcess` that is used here."""

    def count(self, message: Counted) -> None:
        """Say what became of a report that it has sent."""
        ...


class ReceivedReports:
    """The supervisor's end: counts what the workers forward.

    Args:
        reports: counts them.
    """

    def __init__(self, reports: EpisodeReports) -> None:
        self._reports = reports

    def receive(self, worker: CountingWorker, message: Answered | Reported) -> None:
        """Take a message of `worker`."""
        version = PolicyVersion(message.policy, message.version)
        if isinstance(message, Answered):
            self._reports.answered(message.robot_id, version)
        elif self._reports.knows(message.robot_id, version):
            self._count(worker, message)
        else:
            asyncio.get_running_loop().call_later(_LINES_S, self._count, worker, message)

    def _count(self, worker: CountingWorker, message: Reported) -> None:
        version = PolicyVersion(message.policy, message.version)
        report = EpisodeReport(version, message.robot_id, message.episode, message.reached, message.time_at_goal)
        worker.count(Counted(message.number, self._reports.record(report).status))
