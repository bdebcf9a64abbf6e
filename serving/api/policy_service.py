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
from serving.api import codec
from serving.api.handlers import RpcHandlers, parse, parse_blocks
from serving.api.ordered_stream import ordered_stream
from serving.api.overload_check import UnreadCallCheck
from serving.api.range_check import RangeCheck
from serving.api.rpc import RpcContext, RpcService
from serving.batching.queue import QueuedRequest
from serving.engine.engine import Kind
from serving.errors import NotImplementedYetError, ServingError
from serving.policies.registry import PolicyRegistry, ServedPolicy
from serving.telemetry.metrics import NO_POLICY
from serving.telemetry.row_log import RowLog, RowSample

Blocks = TypeVar("Blocks", ActRequestBlocks, ScoreRequestBlocks)


class PolicyService:
    """Answers Act, ActStream, Score, Describe and List. Report is not implemented yet.

    Args:
        policies: the policies that are served.
        handlers: make the methods.
        max_rows: most rows in one call.
        range_check: finds states far from those of training; None: no state is.
        row_log: receives a sample of the answered rows; None: there is none.
    """

    def __init__(
        self,
        policies: PolicyRegistry,
        *,
        handlers: RpcHandlers,
        max_rows: int,
        range_check: RangeCheck | None = None,
        row_log: RowLog | None = None,
    ) -> None:
        self._policies = policies
        self._handlers = handlers
        self._max_rows = max_rows
        self._range_check = range_check
        self._row_log = row_log

    def service(self) -> RpcService:
        """Return the methods, for a transport."""
        unary, inference = self._handlers.unary, self._handlers.inference
        shared = _Shared(self._policies, self._handlers.clock, self._max_rows, self._range_check, self._row_log)
        act, score = _ActRequests(shared), _ScoreRequests(shared)
        return RpcService(
            "kilolayer.v1.Policy",
            unary={
                "Act": inference("Act", act),
                "Score": inference("Score", score),
                "Describe": unary(
                    "Describe",
                    parse=lambda raw: parse(raw, pb.DescribeRequest),
                    label=lambda request: self._policies.label(request.policy),
                    answer=self._describe,
                ),
                "List": unary(
                    "List",
                    parse=lambda raw: parse(raw, pb.ListRequest),
                    label=lambda _: NO_POLICY,
                    answer=self._list,
                ),
                "Report": unary(
                    "Report",
                    parse=lambda raw: parse(raw, pb.ReportRequest),
                    label=lambda request: self._policies.label(request.policy),
                    answer=_report,
                ),
            },
            streams={"ActStream": ordered_stream("ActStream", act, handlers=self._handlers, policies=self._policies)},
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


class _Pending(NamedTuple):
    """An Act or a Score in the batcher."""

    served: ServedPolicy
    sequence: int
    candidates: int  # as those of a ComputeRequest
    queued: QueuedRequest
    out_of_range: bool  # whether a state is far from those of training
    sample: RowSample | None  # the rows of an Act that are logged once it is answered

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
        if self.sample:
            self.sample.answered(action)
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
    row_log: RowLog | None


class _Requests(ABC, Generic[Blocks]):
    """The common part of Act and Score."""

    def __init__(self, shared: _Shared) -> None:
        self._policies, self._clock, self._max_rows, self._range_check, self._row_log = shared

    def label(self, request: Blocks) -> str:
        """Return the policy that `request` names, as a metric label."""
        return self._policies.label(request.policy)

    def admit(self, request: Blocks, context: RpcContext) -> _Pending:
        """Put `request` into the batcher of its policy. Raises ServingError if the request is refused."""
        served = self._policies.find(request.policy, version=request.version)
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
        sample = self._sample(request, served, inputs) if self._row_log else None
        return _Pending(served, request.sequence, work.candidates, queued, is_out_of_range, sample)

    @abstractmethod
    def _decode(self, request: Blocks, spec: PolicySpec) -> codec.ComputeRequest:
        """Return what the engine has to compute. Raises ServingError if `request` does not fit the policy."""

    def _sample(self, _request: Blocks, _served: ServedPolicy, _inputs: np.ndarray) -> RowSample | None:
        """Return the rows that are logged once they are answered: none, unless the reply has actions."""
        return None


class _ActRequests(_Requests[ActRequestBlocks]):
    """Requests of Act and ActStream."""

    parse = staticmethod(functools.partial(parse_blocks, blocks_type=ActRequestBlocks, public_type=pb.ActRequest))

    def _decode(self, request: ActRequestBlocks, spec: PolicySpec) -> codec.ComputeRequest:
        return codec.decode_act(request, spec, max_rows=self._max_rows)

    def _sample(self, request: ActRequestBlocks, served: ServedPolicy, inputs: np.ndarray) -> RowSample | None:
        assert self._row_log
        return self._row_log.sample(served.bundle.spec, served.version, inputs=inputs, robot_id=request.robot_id)

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


async def _report(_request: pb.ReportRequest, _context: RpcContext) -> bytes:
    raise NotImplementedYetError("this server does not keep reports of episodes yet; do not send them")


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
