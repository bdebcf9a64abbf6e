"""Which reports of episodes count, and the sums of those that do."""

import itertools
import time
from collections.abc import Callable

import pytest

from serving.policies.episode_reports import (
    EpisodeCounts,
    EpisodeReport,
    EpisodeReports,
    PolicyVersion,
    Receipt,
    ReportStatus,
)
from tests.processor_time import in_comparisons

ACCEPTED, DUPLICATE, UNKNOWN = ReportStatus
LIVE, CANDIDATE = PolicyVersion("maze", 1000), PolicyVersion("maze", 2000)


def report(
    robot_id: str = "r1", episode: int = 0, *, by: PolicyVersion = LIVE, reached: bool = True, time_at_goal: int = 5
) -> EpisodeReport:
    return EpisodeReport(by, robot_id, episode, reached, time_at_goal)


def reports_of(*robots: str, max_robots: int = 10_000, clock: Callable[[], float] = time.monotonic) -> EpisodeReports:
    """Reports of a server whose live version has answered `robots`."""
    reports = EpisodeReports(max_robots=max_robots, clock=clock)
    for robot in robots:
        reports.answered(robot, LIVE)
    return reports


def other() -> PolicyVersion:
    return PolicyVersion("other", 1000)


def statuses(reports: EpisodeReports, *each: EpisodeReport) -> list[ReportStatus]:
    return [reports.record(one).status for one in each]


def test_reports_are_summed_by_policy_and_version() -> None:
    reports = reports_of("r1", "r2")
    reports.answered("r2", CANDIDATE)
    given = (
        report("r1", 0, time_at_goal=7),
        report("r1", 1, reached=False, time_at_goal=2),
        report("r2", 0, by=CANDIDATE, time_at_goal=30),
    )
    assert statuses(reports, *given) == [ACCEPTED] * 3
    assert reports.counts() == {LIVE: EpisodeCounts(2, 1, 9), CANDIDATE: EpisodeCounts(1, 1, 30)}


def test_a_report_counts_once_for_a_robot_and_an_episode() -> None:
    reports = reports_of("r1", "r2")
    reports.answered("r1", CANDIDATE)
    again = (report("r1", 3), report("r1", 3), report("r1", 3, by=CANDIDATE), report("r2", 3))
    assert statuses(reports, *again) == [ACCEPTED, DUPLICATE, DUPLICATE, ACCEPTED]
    assert reports.counts() == {LIVE: EpisodeCounts(2, 2, 10)}


@pytest.mark.parametrize("wrong", [report("r9"), report(by=CANDIDATE), report(by=other()), report("")])
def test_a_version_that_has_not_answered_the_robot_gets_no_report(wrong: EpisodeReport) -> None:
    reports = reports_of("r1", "r2")
    reports.answered("r2", CANDIDATE)
    assert reports.record(wrong) == Receipt(UNKNOWN, None)
    assert not reports.counts()
    assert statuses(reports, report()) == [ACCEPTED]  # an unknown report uses up no number


def test_reports_may_come_late_and_in_any_order_within_64_numbers() -> None:
    reports = reports_of("r1")
    numbers = [100, 37, 36, 100, 99, 37, 101, 38, 37, 2**64 - 1, 101]
    # 37 is the 64th number up to 100. After 101, 38 is the 64th, and 37 too old.
    expected = [ACCEPTED, ACCEPTED, DUPLICATE, DUPLICATE, ACCEPTED, DUPLICATE, ACCEPTED, ACCEPTED, DUPLICATE, ACCEPTED]
    assert statuses(reports, *(report(episode=number) for number in numbers)) == [*expected, DUPLICATE]


def test_no_order_of_reports_counts_an_episode_twice() -> None:
    for order in itertools.product(range(3), repeat=5):
        reports = reports_of("r1")
        statuses(reports, *(report(episode=40 * number) for number in order))
        assert reports.counts()[LIVE].episodes <= len(set(order))
    for order in itertools.permutations(range(5)):
        assert statuses(reports_of("r1"), *(report(episode=number) for number in order)) == [ACCEPTED] * 5


def test_the_least_recently_used_robot_is_dropped() -> None:
    reports = reports_of("r1", "r2", "r3", max_robots=3)
    reports.answered("r1", LIVE)
    assert statuses(reports, report("r2", 5)) == [ACCEPTED]  # a report is a use, too
    reports.answered("r4", LIVE)
    assert statuses(reports, *(report(robot, 5) for robot in ("r1", "r2", "r3", "r4"))) == [
        *(ACCEPTED, DUPLICATE, UNKNOWN, ACCEPTED)
    ]


def test_10_000_robots_are_kept_and_no_more() -> None:
    reports = reports_of(*(str(number) for number in range(10_001)))
    assert statuses(reports, report("0"), report("1"), report("10000")) == [UNKNOWN, ACCEPTED, ACCEPTED]


def test_a_robot_may_report_the_last_8_versions_that_answered_it() -> None:
    reports = EpisodeReports()
    versions = [PolicyVersion("maze", number) for number in range(9)]
    for version in (*versions[:8], versions[0], versions[8]):  # 1 is the one that answered first
        reports.answered("r1", version)
    given = [report(episode=number, by=version) for number, version in enumerate(versions)]
    assert statuses(reports, *given) == [ACCEPTED, UNKNOWN, *[ACCEPTED] * 7]


def test_the_counts_of_versions_are_bounded() -> None:
    reports = EpisodeReports(max_versions=2)
    versions = [PolicyVersion("maze", number) for number in range(3)]
    for version in versions:
        reports.answered("r1", version)
    statuses(reports, *(report(episode=number, by=versions[which]) for number, which in enumerate((0, 1, 0, 2))))
    assert reports.counts() == {versions[0]: EpisodeCounts(2, 2, 10), versions[2]: EpisodeCounts(1, 1, 5)}


def test_a_receipt_says_when_the_robots_report_before_was_accepted() -> None:
    times_s = iter((10.0, 20.0, 30.0))  # duplicates take none
    reports = reports_of("r1", clock=lambda: next(times_s))
    receipts = [reports.record(report(episode=number)) for number in (0, 0, 1, 2)]
    assert receipts == [
        Receipt(ACCEPTED, None),
        Receipt(DUPLICATE, 10.0),
        Receipt(ACCEPTED, 10.0),
        Receipt(ACCEPTED, 20.0),
    ]


async def test_reports_are_counted_by_policy_and_status() -> None:
    reports = reports_of("r1")
    for given in (report(episode=0), report(episode=0), report(episode=1), report("r2"), report(by=other())):
        await reports.report(given)
    assert reports.statuses() == {
        ("maze", ACCEPTED): 2,
        ("maze", DUPLICATE): 1,
        ("maze", UNKNOWN): 1,
        ("other", UNKNOWN): 1,
    }


def test_only_reports_that_count_are_passed_on() -> None:
    reports, passed = reports_of("r1"), list[tuple[EpisodeReport, Receipt]]()
    reports.on_accepted = lambda *both: passed.append(both)
    receipts = [reports.record(each) for each in (report(), report(), report("r2"))]
    assert passed == [(report(), receipts[0])]


def test_counts_that_were_given_out_do_not_change() -> None:
    reports = reports_of("r1")
    before = reports.counts()
    statuses(reports, report())
    assert before == {}


def test_remembering_an_answer_costs_little() -> None:
    """Every act with a robot's id calls it. The limit is about twenty times what it needs."""
    reports, robots = reports_of("r1", "r2"), itertools.cycle(("r1", "r2"))
    assert in_comparisons(lambda: reports.answered(next(robots), LIVE)) < 3
