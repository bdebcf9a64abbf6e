"""CanaryShare: which robots get the candidate of a canary, and which the live version.

A hash of the policy, the candidate and the robot gives a number from 0 to 1. Robots below the share get the candidate.
So every process decides alike, without messages; a robot keeps its version; a larger share keeps the robots of the
smaller one; and two canaries choose their robots independently of each other.
"""

import dataclasses
import functools
import hashlib

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
        if not 0 < self.share <= 1:
            raise ValueError(f"the share of a canary must be above 0 and at most 1, got {self.share}")

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
