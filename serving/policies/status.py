"""PolicyStatus: what a server has decided about one policy, as an operator sees it."""

import dataclasses
from typing import NamedTuple

from serving.policies.sequential_test import DecisionRule


@dataclasses.dataclass(frozen=True)
class RefusedVersion:
    """A version on disk that must not be served."""

    version: int
    reason: str  # one word, as in the metrics
    detail: str


class Rollback(NamedTuple):
    """What a rollback did."""

    live: int  # the version that is live now
    rolled_back: int  # the version that was live, or the candidate of a canary
    ended_canary: bool  # whether it was the candidate


@dataclasses.dataclass(frozen=True)
class CanaryStatus:
    """A canary, and what the reports have shown."""

    version: int
    share: float  # of the robots
    rule: DecisionRule | None  # when it decides by itself; None: it does not
    live_episodes: int = 0  # that are compared
    candidate_episodes: int = 0
    better: float = 0.0  # logarithm of the evidence; from log(1 / error rate) on, the candidate is promoted
    worse: float = 0.0  # likewise for a rollback
    loading: bool = False  # after a restart: no robot gets it yet


@dataclasses.dataclass(frozen=True)
class ShadowStatus:
    """A shadow."""

    version: int
    share: float  # of the rows
    loading: bool = False  # after a restart: no row is compared yet


@dataclasses.dataclass(frozen=True)
class PolicyStatus:
    """What is decided about one policy."""

    policy: str
    live: int
    previous: tuple[int, ...]  # to which a rollback goes, the most recent first
    loaded: tuple[int, ...]  # every version that answers requests, oldest first
    following: bool
    wanted: str  # latest, best, or a version
    refused: tuple[RefusedVersion, ...]
    canary: CanaryStatus | None = None
    shadow: ShadowStatus | None = None
    rolled_back: tuple[int, ...] = ()  # not taken up by following, oldest first
