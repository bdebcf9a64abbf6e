"""Requests of a client as messages, each with the function that reads its reply. Nothing here sends them."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, Callable, Generic, TypeVar

from numpy.typing import ArrayLike

from kilolayer._arguments import check_name, check_robot_id
from kilolayer._codec import encode_act, encode_report, encode_score
from kilolayer._responses import Action, PolicyDescription, PolicyListing, ReportStatus, Score
from kilolayer.v1 import policy_pb2

Response = TypeVar("Response")


@dataclasses.dataclass(frozen=True)
class Request(Generic[Response]):
    """One request, not yet sent."""

    method: str  # of the service
    message: Any  # the method's request message
    read: Callable[[Any, float], Response]  # the reply and its round trip in seconds -> response; may raise BadReply


class RequestFactory:
    """Builds and numbers the requests for one policy. Thread-safe.

    Args:
        policy: name of the policy; empty means the server's default.
        version: a training step, such as `"2000"`; an int is converted. Empty means the live one.
        robot_id: of the robot that asks for actions, at most 128 bytes in UTF-8. Empty means none.

    Raises:
        ValueError: `robot_id` is not a string, or too long.
    """

    def __init__(self, policy: str, version: str | int, *, robot_id: str = "") -> None:
        self._unchecked = {"policy": policy, "version": str(version)}
        self._robot_id = check_robot_id(robot_id)
        self._sequences = itertools.count(1)

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
    ) -> Request[Action]:
        """Build the request of `PolicyClient.act`. `timeout_us` limits a request of a stream; 0 means no limit."""
        number = next(self._sequences) if sequence is None else sequence
        message, leading_axes = encode_act(
            state,
            goal,
            **self._names(),
            sequence=number,
            seed=seed,
            best_of=best_of,
            priority=priority,
            timeout_us=timeout_us,
            robot_id=self._robot_id,
        )

        def read(reply: policy_pb2.ActResponse, round_trip_s: float) -> Action:
            return Action.from_proto(reply, number, leading_axes=leading_axes, round_trip_s=round_trip_s)

        return Request("Act", message, read)

    def score(
        self, state: ArrayLike, action: ArrayLike, *, goal: ArrayLike, priority: int, sequence: int | None
    ) -> Request[Score]:
        """Build the request of `PolicyClient.score`."""
        number = next(self._sequences) if sequence is None else sequence
        message, leading_axes = encode_score(
            state,
            action,
            goal=goal,
            **self._names(),
            sequence=number,
            priority=priority,
            robot_id=self._robot_id,
        )

        def read(reply: policy_pb2.ScoreResponse, round_trip_s: float) -> Score:
            return Score.from_proto(reply, number, leading_axes=leading_axes, round_trip_s=round_trip_s)

        return Request("Score", message, read)

    def report(self, episode: int, *, version: str | int, reached: bool, time_at_goal: int) -> Request[ReportStatus]:
        """Build the request of `PolicyClient.report`."""
        message = encode_report(
            episode,
            policy=self._names()["policy"],
            version=version,
            robot_id=self._robot_id,
            reached=reached,
            time_at_goal=time_at_goal,
        )
        return Request("Report", message, lambda reply, _: ReportStatus.from_proto(reply))

    def describe(self) -> Request[PolicyDescription]:
        """Build the request of `PolicyClient.describe`."""
        message = policy_pb2.DescribeRequest(**self._names())
        return Request("Describe", message, lambda reply, _: PolicyDescription.from_proto(reply))

    def list_policies(self) -> Request[tuple[PolicyListing, ...]]:
        """Build the request of `PolicyClient.list_policies`."""

        def read(reply: policy_pb2.ListResponse, _round_trip_s: float) -> tuple[PolicyListing, ...]:
            return tuple(PolicyListing.from_proto(entry) for entry in reply.policies)

        return Request("List", policy_pb2.ListRequest(), read)

    def _names(self) -> dict[str, str]:
        """Return the policy and the version, for a request. InvalidRequest if one of them is not text."""
        return {field: check_name(field, name) for field, name in self._unchecked.items()}
