"""The gRPC service `kilolayer.v1.Policy`: which method answers what."""

import dataclasses

import grpc

from kilolayer._internal.blocks_pb2 import ActRequestBlocks, ScoreRequestBlocks, ScoreResponseBlocks
from kilolayer.v1 import policy_pb2 as pb
from policy.spec import PolicySpec
from serving.api import codec
from serving.api.act_stream import METHOD as ACT_STREAM
from serving.api.act_stream import ActStream, encode_actions, reply_fields
from serving.api.handlers import SERVICE_NAME, Calls, Context, remaining_s
from serving.batching.queue import InferenceResult
from serving.policies.registry import PolicyRegistry, ServedPolicy
from serving.telemetry.metrics import NO_POLICY


class PolicyService:
    """Answers Act, ActStream, Score, Describe and List.

    Args:
        policies: the policies.
        calls: counts outcomes, and knows when the server closes.
        max_rows: most rows in one call.
    """

    def __init__(self, policies: PolicyRegistry, *, calls: Calls, max_rows: int) -> None:
        self._policies = policies
        self._calls = calls
        self._max_rows = max_rows

    def handlers(self) -> grpc.GenericRpcHandler:
        """The methods, to be added to a server."""

        def label(request: ActRequestBlocks | ScoreRequestBlocks | pb.DescribeRequest) -> str:
            return self._policies.label(request.policy)

        unary = self._calls.unary
        methods = {
            "Act": unary("Act", parse=codec.parse_act, label=label, answer=self._act),
            ACT_STREAM: grpc.stream_stream_rpc_method_handler(self._act_stream),
            "Score": unary("Score", parse=codec.parse_score, label=label, answer=self._score),
            "Describe": unary(
                "Describe",
                parse=lambda raw: codec.parse(raw, pb.DescribeRequest),
                label=label,
                answer=self._describe,
            ),
            "List": unary(
                "List", parse=lambda raw: codec.parse(raw, pb.ListRequest), label=lambda _: NO_POLICY, answer=self._list
            ),
        }
        return grpc.method_handlers_generic_handler(SERVICE_NAME, methods)

    async def _act(self, request: ActRequestBlocks, context: Context) -> bytes:
        served = self._policies.find(request.policy, version=request.version)
        work = codec.decode_act(request, served.bundle.spec, max_rows=self._max_rows)
        answer = await self._compute(served, work, request, context=context)
        return encode_actions(served, work, answer, sequence=request.sequence)

    async def _act_stream(self, _requests: object, context: Context) -> None:
        await ActStream(context, policies=self._policies, calls=self._calls, max_rows=self._max_rows).run()

    async def _score(self, request: ScoreRequestBlocks, context: Context) -> bytes:
        served = self._policies.find(request.policy, version=request.version)
        work = codec.decode_score(request, served.bundle.spec, max_rows=self._max_rows)
        answer = await self._compute(served, work, request, context=context)
        about = reply_fields(served, answer, sequence=request.sequence)
        return ScoreResponseBlocks(energy=codec.to_bytes(answer.results), **about).SerializeToString()

    async def _describe(self, request: pb.DescribeRequest, _context: Context) -> bytes:
        served = self._policies.find(request.policy, version=request.version)
        return pb.DescribeResponse(
            spec=_encode_spec(served.bundle.spec),
            version=served.version,
            manifest_sha256=served.bundle.manifest_sha256,
            max_rows=self._max_rows,
        ).SerializeToString()

    async def _list(self, _request: pb.ListRequest, _context: Context) -> bytes:
        entries = [
            pb.PolicyEntry(
                policy=name,
                versions=[served.version],
                live_version=served.version,
                is_default=name == self._policies.default,
            )
            for name, served in sorted(self._policies.all().items())
        ]
        return pb.ListResponse(policies=entries).SerializeToString()

    async def _compute(
        self,
        served: ServedPolicy,
        work: codec.ComputeRequest,
        request: ActRequestBlocks | ScoreRequestBlocks,
        *,
        context: Context,
    ) -> InferenceResult:
        timeout_s = remaining_s(context, request.timeout_us)
        answer = await served.batcher.submit(work.rows, kind=work.kind, priority=request.priority, timeout_s=timeout_s)
        if self._calls.tracing:
            self._calls.tracing.computed(answer)
        return answer


def _encode_spec(spec: PolicySpec) -> pb.PolicySpec:
    """The message bears the names of the dataclass, and sizes for those who need no names."""
    return pb.PolicySpec(
        state_dim=spec.state_dim, goal_dim=spec.goal_dim, action_dim=spec.action_dim, **dataclasses.asdict(spec)
    )
