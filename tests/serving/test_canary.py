"""Which robots a canary chooses, and which reports it compares.

The digests are those of coreutils: `printf 'name\\0version\\0key' | b2sum -l 64`.
"""

import heapq
import math
import random

import pytest
from scipy.stats import binom

from serving.policies.canary import Canary, CanaryShare
from serving.policies.episode_reports import EpisodeReport, PolicyVersion, Receipt, ReportStatus
from serving.policies.sequential_test import DecisionRule, Verdict

# 64-bit digests of ("point_u_maze", 2000, key), as fractions of 2**64: 0.136, 0.164, 0.178, 0.483, 0.967
DIGESTS = {
    "robot 7": 0x22D1205D48A4DB05,
    "robot 8": 0x2A06523B68BF47EE,
    "robot 9": 0x2D6F953F78990F7A,
    "": 0x7B98B21BE24841AD,
    "ärm": 0xF79126AE842F83C5,
}
ROBOTS = [f"robot {number}" for number in range(10_000)]


def canary(share: float, *, policy: str = "point_u_maze", candidate: int = 2000) -> CanaryShare:
    return CanaryShare(policy=policy, candidate=candidate, share=share)


def chosen(share: float, *, candidate: int = 2000) -> set[str]:
    found = canary(share, candidate=candidate)
    return {robot for robot in ROBOTS if found.gets_candidate(robot)}


@pytest.mark.parametrize(("key", "digest"), DIGESTS.items())
def test_a_robot_gets_the_candidate_if_its_hash_is_below_the_share(key: str, digest: int) -> None:
    assert canary(digest / 2**64 + 1e-9).gets_candidate(key)
    assert not canary(digest / 2**64 - 1e-9).gets_candidate(key)


@pytest.mark.parametrize(
    ("share", "keys"),
    [
        (0.1, []),
        (0.15, ["robot 7"]),
        (0.17, ["robot 7", "robot 8"]),
        (0.5, ["robot 7", "robot 8", "robot 9", ""]),
        (1.0, ["robot 7", "robot 8", "robot 9", "", "ärm"]),
    ],
)
def test_a_larger_share_keeps_the_robots_of_a_smaller_one(share: float, keys: list[str]) -> None:
    assert [key for key in DIGESTS if canary(share).gets_candidate(key)] == keys


def test_policy_and_candidate_are_part_of_the_hash() -> None:
    """The digests of "robot 7" for version 3000, and for the policy ant_maze, are 0.8297 and 0.7504 of 2**64."""
    assert not canary(0.82, candidate=3000).gets_candidate("robot 7")
    assert canary(0.83, candidate=3000).gets_candidate("robot 7")
    assert not canary(0.75, policy="ant_maze").gets_candidate("robot 7")
    assert canary(0.751, policy="ant_maze").gets_candidate("robot 7")


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9])
def test_the_share_of_the_robots_is_the_one_that_was_asked_for(share: float) -> None:
    low, high = binom.interval(0.999, len(ROBOTS), share)
    assert low <= len(chosen(share)) <= high


def test_every_robot_gets_the_candidate_of_a_full_share() -> None:
    assert len(chosen(1.0)) == len(ROBOTS)


def test_two_canaries_choose_their_robots_independently() -> None:
    both = chosen(0.1, candidate=2000) & chosen(0.1, candidate=3000)
    low, high = binom.interval(0.999, len(ROBOTS), 0.01)
    assert low <= len(both) <= high


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share of a canary must be above 0 and at most 1"):
        canary(share)


def verdict_of_a_fleet(seed: int, *, compares_first_reports: bool) -> Verdict:
    """What 5 minutes of reports of 200 robots show. Both versions reach half of the goals, in 5 s, or fail after 60 s.

    The robots of the candidate begin an episode when the canary begins. The others have driven for a long time.
    """
    draw, assignment = random.Random(seed), canary(0.1)
    found = Canary(assignment, rule=DecisionRule(), now_s=0.0)
    episodes: list[tuple[float, str, bool]] = []  # that go on: their ends, robots and outcomes
    previous_s: dict[str, float] = {}

    def begin(robot: str, now_s: float) -> None:
        reached = draw.random() < 0.5
        heapq.heappush(episodes, (now_s + (5 if reached else 60), robot, reached))

    for number in range(200):
        robot = f"{seed} {number}"
        begin(robot, 0.0 if assignment.gets_candidate(robot) else draw.uniform(-660, -600))
    while found.verdict is Verdict.UNDECIDED:
        now_s, robot, reached = heapq.heappop(episodes)
        if now_s > 300:
            break
        before_s = math.inf if compares_first_reports else previous_s.get(robot)
        if now_s > 0:
            by = PolicyVersion("point_u_maze", 2000 if assignment.gets_candidate(robot) else 1000)
            receipt = Receipt(ReportStatus.ACCEPTED, before_s)
            found.record(EpisodeReport(by, robot, 0, reached, 0), receipt, live=1000)
        previous_s[robot] = now_s
        begin(robot, now_s)
    return found.verdict


def test_successes_that_end_early_do_not_make_a_candidate_look_good() -> None:
    """In the first minute, its robots can only report successes, and those of the live version report failures, too."""
    fleets = range(40)
    verdicts = [verdict_of_a_fleet(seed, compares_first_reports=False) for seed in fleets]
    assert verdicts.count(Verdict.BETTER) <= binom.ppf(0.999, len(fleets), 0.05)  # 8
    naive = [verdict_of_a_fleet(seed, compares_first_reports=True) for seed in fleets]
    assert naive.count(Verdict.BETTER) > 12
