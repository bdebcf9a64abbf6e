"""PolicyStatus: what a server has decided about one policy, as an operator sees it."""

import dataclasses

from serving.policies.sequential_test import DecisionRule
from serving.policies.state_file import ShadowState


@dataclasses.dataclass(frozen=True)
class RefusedVersion:
    """A version on disk that must not be served."""

    version: int
    reason: str  # one word, as in the metrics
    detail: str


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
    shadow: ShadowState | None = None
