"""PolicyStatus: what a server has decided about one policy, as an operator sees it."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class RefusedVersion:
    """A version on disk that must not be served."""

    version: int
    reason: str  # one word, as in the metrics
    detail: str


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
