"""SequentialTest: whether a candidate succeeds more often than the live version, or less often, as reports arrive.

It is a test by betting on the difference of two success rates (Shafer 2021, doi 10.1111/rssa.12647; Waudby-Smith and
Ramdas 2024, arXiv 2010.09686; for two samples, Shekhar and Ramdas 2023, arXiv 2112.09162):

* Episodes are compared in blocks. A block has a fixed number of episodes of each version. Its difference D is the
  candidate's share of successes minus that of the live version, from -1 to 1.
* Two hypotheses are tested: "the candidate is at most `margin` better", whose rejection promotes it, and "it is at most
  `margin` worse", whose rejection rolls it back. Under the first one, the mean of D is at most `margin`.
* A bet with the stake b, from 0 to 1, on the opposite multiplies its capital by 1 + b (D - margin) / (1 + margin) in
  every block. The capital starts at 1 and never becomes negative. If the hypothesis is true, its mean never grows.
* By Ville's inequality, the probability that such a capital ever reaches 1 / alpha is then at most alpha. The test may
  therefore look after every report and end whenever it likes, and the error rates still hold. No number of episodes
  has to be fixed in advance.
* The best stake depends on the unknown difference. The capital is therefore spread evenly over 16 stakes, and the test
  looks at their sum. If the hypothesis is false, the sum grows exponentially.

With blocks of one episode each and no margin, only blocks with one success count, as in Wald's sequential test of two
success rates (Sequential Analysis, 1947, chapter 6).

What the proof assumes: in each block, both versions would have the same mean success rate if they were equally good. It
may change from block to block, so a task that becomes harder for all robots does no harm, nor does another share. It
does not cover versions that get different robots or tasks. It holds only approximately if failures take much longer
than successes, because their reports then come later.
"""

import dataclasses
import enum
import math
from collections import deque
from typing import NamedTuple

import numpy as np

_STAKES = (np.arange(16) + 0.5) / 16
_MAX_RATIO = 10  # episodes of one version for one of the other in a block; more would hardly make D more precise
_MAX_BLOCKS = 8  # whose episodes wait for those of the other version


class Verdict(enum.StrEnum):
    """What the reports so far show about the candidate."""

    UNDECIDED = "undecided"
    BETTER = "better"
    WORSE = "worse"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecisionRule:
    """When a canary promotes its candidate or rolls it back.

    Args:
        false_promotion_rate: largest probability of a promotion if the candidate's success rate is at most `margin`
            higher.
        false_rollback_rate: largest probability of a rollback if it is at most `margin` lower.
        margin: difference of the success rates that does not matter, from 0 to below 1.
        min_episodes: of each version, before any decision.

    Raises:
        ValueError: a value is out of range.
    """

    false_promotion_rate: float = 0.05
    false_rollback_rate: float = 0.05
    margin: float = 0.0
    min_episodes: int = 30

    def __post_init__(self) -> None:
        for field in ("false_promotion_rate", "false_rollback_rate"):
            if not 0 < getattr(self, field) < 1:
                raise ValueError(f"{field} must be above 0 and below 1, such as 0.05; got {getattr(self, field)}")
        if not 0 <= self.margin < 1:
            raise ValueError(f"margin must be at least 0 and below 1, such as 0.02; got {self.margin}")
        if self.min_episodes < 1:
            raise ValueError(f"min_episodes must be at least 1, got {self.min_episodes}")


class BlockSizes(NamedTuple):
    """Episodes of each version in a block."""

    live: int
    candidate: int


class Evidence(NamedTuple):
    """The logarithms of the capitals that were won by bets on either side; above log(1 / alpha), it is significant."""

    better: float
    worse: float


class SequentialTest:
    """Compares the episodes of a candidate with those of the live version.

    Args:
        rule: when to decide.
        share: of the robots that get the candidate.
    """

    def __init__(self, rule: DecisionRule, *, share: float) -> None:
        self._rule = rule
        self._capital = initial_capital()
        self._episodes = {False: 0, True: 0}  # by whether it is the candidate
        self.change_share(share)

    def change_share(self, share: float) -> None:
        """Compare blocks of other sizes from now on, since another share of the robots gets the candidate."""
        self._sizes = block_sizes(share)
        self._live: deque[bool] = deque(maxlen=_MAX_BLOCKS * self._sizes.live)
        self._candidate: deque[bool] = deque(maxlen=_MAX_BLOCKS * self._sizes.candidate)

    def record(self, *, is_candidate: bool, reached: bool) -> Verdict:
        """Add one episode, and return what all of them show.

        Episodes are compared in the order of their arrival. If one version has more of them than the blocks need, its
        oldest ones are dropped.

        Args:
            is_candidate: whether the candidate gave the actions, not the live version.
            reached: whether the episode was a success.
        """
        (self._candidate if is_candidate else self._live).append(reached)
        self._episodes[is_candidate] += 1
        sizes = self._sizes
        if len(self._live) >= sizes.live and len(self._candidate) >= sizes.candidate:
            live = sum(self._live.popleft() for _ in range(sizes.live))
            candidate = sum(self._candidate.popleft() for _ in range(sizes.candidate))
            difference = np.array(candidate / sizes.candidate - live / sizes.live)
            self._capital += growth(difference, margin=self._rule.margin)
        return self.verdict

    def episodes(self, *, is_candidate: bool) -> int:
        """Return how many episodes were added, of the candidate or of the live version."""
        return self._episodes[is_candidate]

    @property
    def evidence(self) -> Evidence:
        """How strong the evidence is that the candidate is better, and that it is worse."""
        return Evidence(*log_evidence(self._capital).tolist())

    @property
    def verdict(self) -> Verdict:
        """What the episodes so far show."""
        if min(self._episodes.values()) < self._rule.min_episodes:
            return Verdict.UNDECIDED
        evidence = self.evidence
        if evidence.worse >= -math.log(self._rule.false_rollback_rate):
            return Verdict.WORSE
        if evidence.better >= -math.log(self._rule.false_promotion_rate):
            return Verdict.BETTER
        return Verdict.UNDECIDED


def block_sizes(share: float) -> BlockSizes:
    """Return the episodes of each version in a block, for robots of which the share `share` gets the candidate.

    Robots of the more frequent version give several episodes for each one of the other version. Using them makes the
    difference more precise.
    """
    rarer = max(min(share, 1 - share), 1 / (_MAX_RATIO + 1))
    ratio = int(1 / rarer - 1 + 1e-9)  # 1 / 0.1 may be just below 10
    return BlockSizes(live=ratio, candidate=1) if share <= 0.5 else BlockSizes(live=1, candidate=ratio)


def initial_capital(*tests: int) -> np.ndarray:
    """Return the logarithms of the capitals at the start: [*tests, 2 hypotheses, 16 stakes]."""
    return np.full((*tests, 2, len(_STAKES)), -math.log(len(_STAKES)))


def growth(difference: np.ndarray, *, margin: float) -> np.ndarray:
    """Return by how much one block changes the logarithms of the capitals, [*tests, 2 hypotheses, 16 stakes].

    Args:
        difference: [*tests], the candidate's share of successes minus that of the live version.
        margin: as in `DecisionRule`.
    """
    gain = (np.stack([difference, -difference], axis=-1) - margin) / (1 + margin)  # -1 or more
    return np.log1p(gain[..., np.newaxis] * _STAKES)


def log_evidence(capital: np.ndarray) -> np.ndarray:
    """Return the logarithms of the sums over the stakes, [*tests, 2]: that the candidate is better, and worse."""
    return np.logaddexp.reduce(capital, axis=-1)
