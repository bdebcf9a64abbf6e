"""Questions: what a client can ask, as a request and the way to read its reply; how it travels is somebody else's."""

import itertools
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

from numpy.typing import ArrayLike

from kilolayer.replies import Action, PolicyDescription, PolicyListing, Score
from kilolayer.v1 import policy_pb2
from kilolayer.wire import encode_act, encode_score

Answer = TypeVar("Answer")


class Question(NamedTuple, Generic[Answer]):
    """One request, not yet sent."""

    method: str  # of the service
    request: Any  # the message that the method takes
    read: Callable[[Any, float], Answer]  # the answer, from the reply and the seconds it took; may raise BadReply


class Questions:
    """Makes the questions about one policy, and numbers them. Threads may share it.

    Args:
        policy: its name; empty means the server's default.
        version: a training step; empty means the live one.
    """

    def __init__(self, policy: str, version: str | int) -> None:
        self._policy = policy
        self._version = str(version)
        self._numbers = itertools.count(1)

    def act(
        self,
        state: ArrayLike,
        goal: ArrayLike,
        *,
        seed: int | None,
        best_of: int | None,
        priority: int,
        sequence: int | None = None,
        timeout_us: int = 0,
    ) -> Question[Action]:
        """Which action; see `PolicyClient.act`. `timeout_us` tells a server that sees no deadline; 0 is none."""
        number = next(self._numbers) if sequence is None else sequence
        request, leading_axes = encode_act(
            state,
            goal,
            policy=self._policy,
            version=self._version,
            sequence=number,
            seed=seed,
            best_of=best_of,
            priority=priority,
            timeout_us=timeout_us,
        )

        def read(reply: policy_pb2.ActResponse, round_trip_s: float) -> Action:
            return Action.from_proto(reply, number, leading_axes=leading_axes, round_trip_s=round_trip_s)

        return Question("Act", request, read)

    def score(
        self, state: ArrayLike, action: ArrayLike, *, goal: ArrayLike, priority: int, sequence: int | None
    ) -> Question[Score]:
        """How near the goal is; see `PolicyClient.score`."""
        number = next(self._numbers) if sequence is None else sequence
        request, leading_axes = encode_score(
            state,
            action,
            goal=goal,
            policy=self._policy,
            version=self._version,
            sequence=number,
            priority=priority,
        )

        def read(reply: policy_pb2.ScoreResponse, round_trip_s: float) -> Score:
            return Score.from_proto(reply, number, leading_axes=leading_axes, round_trip_s=round_trip_s)

        return Question("Score", request, read)

    def describe(self) -> Question[PolicyDescription]:
        """What the policy is."""
        request = policy_pb2.DescribeRequest(policy=self._policy, version=self._version)
        return Question("Describe", request, lambda reply, _: PolicyDescription.from_proto(reply))

    def list_policies(self) -> Question[tuple[PolicyListing, ...]]:
        """Which policies there are."""

        def read(reply: policy_pb2.ListResponse, _round_trip_s: float) -> tuple[PolicyListing, ...]:
            return tuple(PolicyListing.from_proto(entry) for entry in reply.policies)

        return Question("List", policy_pb2.ListRequest(), read)
