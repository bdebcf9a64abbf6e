"""Responses of a server, as frozen dataclasses."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kilolayer._arguments import Axes, is_masked
from kilolayer._codec import decode_chunk, decode_energy
from kilolayer.errors import BadReply
from kilolayer.v1 import policy_pb2


class _Timed:
    """Durations of a response, each measured by one clock: the server's, or this machine's."""

    queue_us: int
    compute_us: int
    round_trip_s: float

    @property
    def server_s(self) -> float:
        """Seconds in the server's queue and computation, on the server's clock."""
        return (self.queue_us + self.compute_us) / 1e6

    @property
    def overhead_s(self) -> float:
        """Seconds of the round trip outside the queue and the computation: network, encoding, late threads."""
        return max(0.0, self.round_trip_s - self.server_s)


@dataclasses.dataclass(frozen=True, eq=False)
class Action(_Timed):
    """The response to one `act`."""

    chunk: NDArray[np.float32]  # [action_chunk, action_dim] or [rows, action_chunk, action_dim], first action first
    policy: str  # the policy that answered
    version: str  # the version that answered: a training step, such as "2000"
    sequence: int  # the number that the request carried
    queue_us: int  # microseconds that the request waited in the server's queue
    compute_us: int  # microseconds of computation: of the batch, or of all batches if the request was split
    batch_rows: int  # rows computed together, including those of this request
    round_trip_s: float  # seconds from sending to receiving, on this machine's monotonic clock
    out_of_range: bool = False  # whether a state is far from those that the policy saw in training

    @property
    def action(self) -> NDArray[np.float32]:
        """The first action: [action_dim] for one state, [rows, action_dim] for a block; each value in [-1, 1]."""
        return self.chunk[..., 0, :]

    @classmethod
    def from_proto(
        cls, reply: policy_pb2.ActResponse, sequence: int, *, leading_axes: Axes, round_trip_s: float
    ) -> Action:
        """Return the actions in the reply to the request numbered `sequence`. Raises as `decode_chunk`."""
        return cls(
            chunk=decode_chunk(reply, sequence, leading_axes=leading_axes),
            out_of_range=reply.out_of_range,
            **_shared_fields(reply, round_trip_s),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Score(_Timed):
    """The response to one `score`. Fields without a comment are as in `Action`."""

    energy: NDArray[np.float32]  # [] for one state, [rows] for a block; higher: the goal is nearer
    policy: str
    version: str
    sequence: int
    queue_us: int
    compute_us: int
    batch_rows: int
    round_trip_s: float

    @classmethod
    def from_proto(
        cls, reply: policy_pb2.ScoreResponse, sequence: int, *, leading_axes: Axes, round_trip_s: float
    ) -> Score:
        """Return the energy in the reply to the request numbered `sequence`. Raises as `decode_energy`."""
        return cls(
            energy=decode_energy(reply, sequence, leading_axes=leading_axes), **_shared_fields(reply, round_trip_s)
        )


class ReportStatus(str, enum.Enum):
    """What became of a report."""

    ACCEPTED = "accepted"  # it counts
    DUPLICATE = "duplicate"  # the episode was reported before, or its number is far below the robot's highest
    UNKNOWN = "unknown"  # the version has not answered the robot, or so long ago that the server has forgotten it

    @classmethod
    def from_proto(cls, reply: policy_pb2.ReportResponse) -> ReportStatus:
        """Return the status in `reply`. BadReply if it has none."""
        try:
            return _REPORT_STATUSES[reply.status]
        except KeyError:
            raise BadReply(f"Reply rejected: unknown status {reply.status}.", status="DATA_LOSS") from None


_REPORT_STATUSES = {
    policy_pb2.REPORT_STATUS_ACCEPTED: ReportStatus.ACCEPTED,
    policy_pb2.REPORT_STATUS_DUPLICATE: ReportStatus.DUPLICATE,
    policy_pb2.REPORT_STATUS_UNKNOWN: ReportStatus.UNKNOWN,
}


@dataclasses.dataclass(frozen=True)
class PolicyDescription:
    """The sizes, names and limits of one version of a policy. A name has its unit in brackets: `"x [m]"`."""

    name: str
    version: str  # a training step, such as "2000"
    environment: str  # environment it was trained on
    state_names: tuple[str, ...]  # [state_dim]
    goal_names: tuple[str, ...]  # [goal_dim]
    action_names: tuple[str, ...]  # [action_dim]
    action_low: tuple[float, ...]  # [action_dim] the value that -1 stands for, in the unit of action_names
    action_high: tuple[float, ...]  # [action_dim] the value that +1 stands for
    control_period_s: float  # seconds between two actions in training
    success_radius: float  # distance to the goal that counts as reached, in the unit of goal_names
    actor_depth: int
    actor_width: int
    critic_depth: int
    critic_width: int
    representation_dim: int
    energy: str  # how `score` compares two encodings: l2, l2_squared, dot or cosine
    activation: str
    layer_norm: bool
    residual: bool
    actuator_kind: tuple[str, ...]  # [action_dim] what an action drives: position, velocity, torque or other
    rest_action: tuple[float, ...]  # [action_dim] in [-1, 1], the action that leaves the robot at rest
    action_meaning: tuple[str, ...]  # [action_dim] absolute, or increment: the action changes a target
    max_action_change: tuple[float, ...]  # [action_dim] largest change per control period, in (0, 2]; empty: no limit
    action_chunk: int  # consecutive actions of a row in a request or a reply
    critic: str  # energy; or none: `score` and `best_of` raise NotSupported
    normalize_observations: bool  # whether the policy normalizes states, with the two fields below
    normalization_mean: tuple[float, ...]  # [state_dim] or empty; of the states before learning began
    normalization_std: tuple[float, ...]
    seen_mean: tuple[float, ...]  # [state_dim] or empty; of all states seen in training, never applied
    seen_std: tuple[float, ...]
    seen_low: tuple[float, ...]
    seen_high: tuple[float, ...]
    state_quaternions: tuple[int, ...]  # index of the first value (w) of each quaternion (w, x, y, z) in the state
    goal_quaternions: tuple[int, ...]  # the same in the goal
    manifest_sha256: str  # hex digest; equal digests mean equal policies
    max_rows: int  # maximum rows of one `act`

    @property
    def state_dim(self) -> int:
        """Number of values in one state."""
        return len(self.state_names)

    @property
    def goal_dim(self) -> int:
        """Number of values in one goal."""
        return len(self.goal_names)

    @property
    def action_dim(self) -> int:
        """Number of values in one action."""
        return len(self.action_names)

    def to_robot_units(self, action: ArrayLike) -> NDArray[np.float64]:
        """Return `action: [..., action_dim]` in the units of `action_names`: `Action.action` or `Action.chunk`.

        -1 becomes `action_low`, and 1 becomes `action_high`. ValueError if `action` is a masked array.
        """
        if is_masked(action):
            raise ValueError("action must not be a masked array; pass action.filled(value)")
        low, high = np.array(self.action_low), np.array(self.action_high)
        return low + (np.asarray(action) + 1) / 2 * (high - low)

    @classmethod
    def from_proto(cls, reply: policy_pb2.DescribeResponse) -> PolicyDescription:
        """Return the description in `reply`."""
        spec = reply.spec
        return cls(
            name=spec.name,
            version=reply.version,
            environment=spec.environment,
            state_names=tuple(spec.state_names),
            goal_names=tuple(spec.goal_names),
            action_names=tuple(spec.action_names),
            action_low=tuple(spec.action_low),
            action_high=tuple(spec.action_high),
            control_period_s=spec.control_period_s,
            success_radius=spec.success_radius,
            actor_depth=spec.actor_depth,
            actor_width=spec.actor_width,
            critic_depth=spec.critic_depth,
            critic_width=spec.critic_width,
            representation_dim=spec.representation_dim,
            energy=spec.energy,
            activation=spec.activation,
            layer_norm=spec.layer_norm,
            residual=spec.residual,
            actuator_kind=tuple(spec.actuator_kind),
            rest_action=tuple(spec.rest_action),
            action_meaning=tuple(spec.action_meaning),
            max_action_change=tuple(spec.max_action_change),
            action_chunk=spec.action_chunk,
            critic=spec.critic,
            normalize_observations=spec.normalize_observations,
            normalization_mean=tuple(spec.normalization_mean),
            normalization_std=tuple(spec.normalization_std),
            seen_mean=tuple(spec.seen_mean),
            seen_std=tuple(spec.seen_std),
            seen_low=tuple(spec.seen_low),
            seen_high=tuple(spec.seen_high),
            state_quaternions=tuple(spec.state_quaternions),
            goal_quaternions=tuple(spec.goal_quaternions),
            manifest_sha256=reply.manifest_sha256,
            max_rows=reply.max_rows,
        )


@dataclasses.dataclass(frozen=True)
class PolicyListing:
    """One policy of a server."""

    policy: str
    versions: tuple[str, ...]  # versions that `act` accepts, oldest first
    live_version: str  # the version that an empty version means
    is_default: bool  # whether an empty policy means this one

    @classmethod
    def from_proto(cls, entry: policy_pb2.PolicyEntry) -> PolicyListing:
        """Return the listing in `entry`."""
        return cls(
            policy=entry.policy,
            versions=tuple(entry.versions),
            live_version=entry.live_version,
            is_default=entry.is_default,
        )


def _shared_fields(reply: policy_pb2.ActResponse | policy_pb2.ScoreResponse, round_trip_s: float) -> dict[str, Any]:
    """Return the fields that `Action` and `Score` share."""
    return {
        "policy": reply.policy,
        "version": reply.version,
        "sequence": reply.sequence,
        "queue_us": reply.queue_us,
        "compute_us": reply.compute_us,
        "batch_rows": reply.batch_rows,
        "round_trip_s": round_trip_s,
    }
