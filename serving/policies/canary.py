"""CanaryShare: which robots get the candidate of a canary, and which the live version; Canary: what reports show.

A hash of the policy, the candidate and the robot gives a number from 0 to 1. Robots below the share get the candidate.
So every process decides alike, without messages; a robot keeps its version; a larger share keeps the robots of the
smaller one; and two canaries choose their robots independently of each other.
"""

import dataclasses
import functools
import hashlib

from serving.policies.episode_reports import EpisodeReport, Receipt
from serving.policies.sequential_test import DecisionRule, SequentialTest, Verdict

_HASH_BYTES = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class CanaryShare:
    """The share of the robots that get a candidate.

    Args:
        policy: name of the policy.
        candidate: version that is tried.
        share: of the robots, above 0 and at most 1.

    Raises:
        ValueError: the share is out of range.
    """

    policy: str
    candidate: int
    share: float

    def __post_init__(self) -> None:
        check_share(self.share, of="a canary")

    def gets_candidate(self, key: str) -> bool:
        """Return whether the robot `key` gets the candidate.

        Args:
            key: the robot's `robot_id`; without one, a name of its stream or connection.
        """
        digest = hashlib.blake2b(self._prefix + key.encode(), digest_size=_HASH_BYTES).digest()
        return int.from_bytes(digest, "big") < self._limit

    @functools.cached_property
    def _prefix(self) -> bytes:
        return f"{self.policy}\0{self.candidate}\0".encode()  # no name has a NUL, so the parts cannot be confused

    @functools.cached_property
    def _limit(self) -> int:
        return int(self.share * 2 ** (8 * _HASH_BYTES))


def check_share(share: float, *, of: str) -> None:
    """Raise ValueError if a share is out of range. `of` says what it belongs to, with its article."""
    if not 0 < share <= 1:
        raise ValueError(f"the share of {of} must be above 0 and at most 1, got {share}")


class Canary:
    """A canary, and what the reports show.

    A report is compared if the robot was assigned to its version for the whole episode: if the version is the one that
    the robot gets without naming any, and the robot's report before it came after the share was last changed. Otherwise
    a candidate could look good early: in the first seconds only short episodes end, and those are often successes.

    Args:
        assignment: of the robots.
        rule: when it decides by itself; None: it does not.
        now_s: monotonic seconds.
    """

    def __init__(self, assignment: CanaryShare, *, rule: DecisionRule | None, now_s: float) -> None:
        self._assignment = assignment
        self._changed_s = now_s
        self.rule = rule
        self.test = SequentialTest(rule, share=assignment.share) if rule else None
        """The comparison; None: there is none."""

    @property
    def version(self) -> int:
        """The candidate."""
        return self._assignment.candidate

    @property
    def share(self) -> float:
        """Of the robots."""
        return self._assignment.share

    @property
    def verdict(self) -> Verdict:
        """What the reports so far show."""
        return self.test.verdict if self.test else Verdict.UNDECIDED

    def change_share(self, share: float, *, now_s: float) -> None:
        """Give another share of the robots the candidate. What reports show is kept. Errors as of `CanaryShare`."""
        self._assignment = dataclasses.replace(self._assignment, share=share)
        self._changed_s = now_s
        if self.test:
            self.test.change_share(share)

    def record(self, report: EpisodeReport, receipt: Receipt, *, live: int) -> Verdict:
        """Take a report that was accepted into account, and return what all of them show.

        Args:
            report: about this policy.
            receipt: for the report.
            live: the live version.
        """
        is_whole = receipt.previous_s is not None and receipt.previous_s > self._changed_s
        if self.test and is_whole:
            is_candidate = self._assignment.gets_candidate(report.robot_id)
            if report.answered_by.version == (self.version if is_candidate else live):
                self.test.record(is_candidate=is_candidate, reached=report.reached)
        return self.verdict
