"""PolicyService: the methods of `kilolayer.v1.Policy`, and how their replies are made."""

import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from kilolayer._internal.blocks_pb2 import (
    ActRequestBlocks,
    ActResponseBlocks,
    ScoreRequestBlocks,
    ScoreResponseBlocks,
)
from kilolayer.v1 import policy_pb2 as pb
from policy.spec import PolicySpec
from serving.access.roles import Role
from serving.api import codec
from serving.api.handlers import RpcHandlers, parse, parse_blocks
from serving.api.observers import Observation, Observers
from serving.api.ordered_stream import ordered_stream
from serving.api.overload_check import UnreadCallCheck
from serving.api.range_check import RangeCheck
from serving.api.rpc import Method, RpcContext, RpcService
from serving.batching.queue import QueuedRequest
from serving.engine.engine import Kind
from serving.errors import ServingError
from serving.policies.episode_reports import EpisodeReport, PolicyVersion, ReportStatus
from serving.policies.registry import PolicyRegistry, ServedPolicy
from serving.telemetry.metrics import NO_POLICY

Blocks = TypeVar("Blocks", ActRequestBlocks, ScoreRequestBlocks)

_REPORT_STATUSES = {
    ReportStatus.ACCEPTED: pb.REPORT_STATUS_ACCEPTED,
    ReportStatus.DUPLICATE: pb.REPORT_STATUS_DUPLICATE,
    ReportStatus.UNKNOWN: pb.REPORT_STATUS_UNKNOWN,
}


class PolicyService:
    """Answers Act, ActStream, Score, Describe, List and Report.

    Args:
        policies: the policies that are served.
        handlers: make the methods.
        max_rows: most rows in one call.
        range_check: finds states far from those of training; None: no state is.
        observers: get the requests that are answered, and reports; None: new ones.
    """

    def __init__(
        self,
        policies: PolicyRegistry,
        *,
        handlers: RpcHandlers,
        max_rows: int,
        range_check: RangeCheck | None = None,
        observers: Observers | None = None,
    ) -> None:
        self._policies = policies
        self._handlers = handlers
        self._max_rows = max_rows
        self._range_check = range_check
        self._observers = observers or Observers(policies)

    def service(self) -> RpcService:
        """Return the methods, for a transport."""
        unary, inference = self._handlers.unary, self._handlers.inference
        shared = _Shared(self._policies, self._handlers.clock, self._max_rows, self._range_check, self._observers)
        act, score = _ActRequests(shared), _ScoreRequests(shared)
        return RpcService(
            "kilolayer.v1.Policy",
            unary={
                "Act": Method(Role.ACT, inference("Act", act)),
                "Score": Method(Role.ACT, inference("Score", score)),
                "Describe": Method(
                    Role.DESCRIBE,
                    unary(
                        "Describe",
                        parse=lambda raw: parse(raw, pb.DescribeRequest),
                        label=lambda request: self._policies.label(request.policy),
                        answer=self._describe,
                    ),
                ),
                "List": Method(
                    Role.DESCRIBE,
                    unary(
                        "List",
                        parse=lambda raw: parse(raw, pb.ListRequest),
                        label=lambda _: NO_POLICY,
                        answer=self._list,
                    ),
                ),
                "Report": Method(
                    Role.REPORT,
                    unary(
                        "Report",
                        parse=lambda raw: parse(raw, pb.ReportRequest),
                        label=lambda request: self._policies.label(request.policy),
                        answer=self._report,
                    ),
                ),
            },
            streams={
                "ActStream": Method(
                    Role.ACT, ordered_stream("ActStream", act, handlers=self._handlers, policies=self._policies)
                )
            },
            overload=UnreadCallCheck("Act", "Score", policies=self._policies, handlers=self._handlers),
        )

    async def _describe(self, request: pb.DescribeRequest, _context: RpcContext) -> bytes:
        served = self._policies.find(request.policy, version=request.version)
        return pb.DescribeResponse(
            spec=_encode_spec(served.bundle.spec),
            version=served.version,
            manifest_sha256=served.bundle.manifest_sha256,
            max_rows=self._max_rows,
        ).SerializeToString()

    async def _list(self, _request: pb.ListRequest, _context: RpcContext) -> bytes:
        entries = [
            pb.PolicyEntry(
                policy=name,
                versions=[each.version for each in self._policies.loaded(name)],
                live_version=served.version,
                is_default=name == self._policies.default,
            )
            for name, served in sorted(self._policies.live().items())
        ]
        return pb.ListResponse(policies=entries).SerializeToString()

    async def _report(self, request: pb.ReportRequest, _context: RpcContext) -> bytes:
        codec.check_report(request)
        policy = self._policies.find(request.policy, version="").name
        report = EpisodeReport(
            PolicyVersion(policy, int(request.version)),
            request.robot_id,
            request.episode,
            reached=request.reached,
            time_at_goal=request.time_at_goal,
        )
        status = await self._observers.reports.report(report)
        return pb.ReportResponse(status=_REPORT_STATUSES[status]).SerializeToString()


class _Pending(NamedTuple):
    """An Act or a Score in the batcher."""

    served: ServedPolicy
    sequence: int
    candidates: int  # as those of a ComputeRequest
    queued: QueuedRequest
    out_of_range: bool  # whether a state is far from those of training
    observation: Observation | None  # what else happens once an Act is answered

    async def reply(self) -> bytes:
        """Wait for the results and return the serialized reply. Raises ServingError if the request has failed."""
        result = await self.queued.result
        about: dict[str, Any] = {
            "policy": self.served.name,
            "version": self.served.version,
            "sequence": self.sequence,
            "queue_us": round(result.queue_s * 1e6),
            "compute_us": round(result.compute_s * 1e6),
            "batch_rows": result.batch_rows,
        }
        if self.queued.kind is Kind.SCORE:
            return ScoreResponseBlocks(energy=result.results.tobytes(), **about).SerializeToString()
        action = _actions(result.results, self.queued.kind, candidates=self.candidates)
        if self.observation:
            self.observation.answered(action)
        chunk = self.served.bundle.spec.action_chunk
        return ActResponseBlocks(
            action=action.tobytes(),
            action_chunk=chunk if chunk > 1 else 0,
            out_of_range=self.out_of_range,
            **about,
        ).SerializeToString()

    def withdraw(self) -> None:
        """Take the request out of the batcher. No effect once it is completed."""
        self.served.batcher.withdraw(self.queued)


class _Shared(NamedTuple):
    """What all methods use; see `PolicyService`."""

    policies: PolicyRegistry
    clock: Callable[[], float]
    max_rows: int
    range_check: RangeCheck | None
    observers: Observers


class _Requests(ABC, Generic[Blocks]):
    """The common part of Act and Score."""

    def __init__(self, shared: _Shared) -> None:
        self._policies, self._clock, self._max_rows, self._range_check, self._observers = shared

    def label(self, request: Blocks) -> str:
        """Return the policy that `request` names, as a metric label."""
        return self._policies.label(request.policy)

    def admit(self, request: Blocks, context: RpcContext) -> _Pending:
        """Put `request` into the batcher of its policy. Raises ServingError if the request is refused."""
        robot = request.robot_id or context.caller
        served = self._policies.find(request.policy, version=request.version, robot=robot)
        spec = served.bundle.spec
        work = self._decode(request, spec)
        inputs = work.rows[:: work.candidates]
        is_out_of_range = self._range_check is not None and self._range_check.is_out_of_range(
            served, inputs[:, : spec.state_dim]
        )
        timeout_s = context.timeout_s(self._clock(), limit_us=request.timeout_us)
        queued = served.batcher.admit(
            work.rows, kind=work.kind, priority=request.priority, timeout_s=timeout_s, connection=context.connection
        )
        if self._range_check and is_out_of_range:
            self._range_check.count(served)
        observation = self._observe(request, served, work)
        return _Pending(served, request.sequence, work.candidates, queued, is_out_of_range, observation)

    @abstractmethod
    def _decode(self, request: Blocks, spec: PolicySpec) -> codec.ComputeRequest:
        """Return what the engine has to compute. Raises ServingError if `request` does not fit the policy."""

    def _observe(self, _request: Blocks, _served: ServedPolicy, _work: codec.ComputeRequest) -> Observation | None:
        """Return what else happens once the request is answered: nothing, unless the reply has actions."""
        return None


class _ActRequests(_Requests[ActRequestBlocks]):
    """Requests of Act and ActStream."""

    parse = staticmethod(functools.partial(parse_blocks, blocks_type=ActRequestBlocks, public_type=pb.ActRequest))

    def _decode(self, request: ActRequestBlocks, spec: PolicySpec) -> codec.ComputeRequest:
        return codec.decode_act(request, spec, max_rows=self._max_rows)

    def _observe(
        self, request: ActRequestBlocks, served: ServedPolicy, work: codec.ComputeRequest
    ) -> Observation | None:
        inputs = work.rows[:: work.candidates]
        return self._observers.admitted(served, inputs, kind=work.kind, robot_id=request.robot_id)

    def tag(self, request: ActRequestBlocks) -> int:
        """Return the sequence of `request`, which its reply repeats."""
        return request.sequence

    def refusal(self, tag: int, failure: ServingError) -> bytes:
        """Return the reply of a stream to the request of sequence `tag`, which gets no actions."""
        why = pb.Failure(code=failure.status, message=str(failure), reason=failure.reason)
        return ActResponseBlocks(sequence=tag, failure=why).SerializeToString()


class _ScoreRequests(_Requests[ScoreRequestBlocks]):
    """Requests of Score."""

    parse = staticmethod(functools.partial(parse_blocks, blocks_type=ScoreRequestBlocks, public_type=pb.ScoreRequest))

    def _decode(self, request: ScoreRequestBlocks, spec: PolicySpec) -> codec.ComputeRequest:
        return codec.decode_score(request, spec, max_rows=self._max_rows)


def _actions(results: np.ndarray, kind: Kind, *, candidates: int) -> np.ndarray:
    """Return the actions [rows, chunk_dim] of an Act: of each row's candidates, the one with the highest energy."""
    if kind is not Kind.BEST_OF:
        return results
    by_row = results.reshape(-1, candidates, results.shape[1])  # the last column is the energy
    best = by_row[:, :, -1].argmax(axis=1)
    return by_row[np.arange(len(by_row)), best, :-1]


def _encode_spec(spec: PolicySpec) -> pb.PolicySpec:
    """Return `spec` as a message, whose fields have the names of the dataclass, with the sizes added."""
    return pb.PolicySpec(
        state_dim=spec.state_dim, goal_dim=spec.goal_dim, action_dim=spec.action_dim, **dataclasses.asdict(spec)
    )
