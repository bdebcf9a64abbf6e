"""Requests and replies of `kilolayer.v1.Policy` by their bytes and numbers; a fake batcher computes nothing."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import Message
from prometheus_client import CollectorRegistry

from kilolayer import PolicyDescription
from kilolayer.v1 import policy_pb2 as pb
from policy.spec import PolicySpec
from serving.api.handlers import RpcHandlers
from serving.api.policy_service import PolicyService
from serving.api.rpc import RpcContext, RpcService
from serving.engine.engine import Kind
from serving.errors import InvalidRequestError, NoCriticError, ServingError
from serving.telemetry.metrics import Metrics
from tests.samples import WITHOUT_CRITIC, policy_spec
from tests.serving.fakes import FakeBatcher, policies_of

CONTEXT = RpcContext("/any")
SIX = [0.5, -1, 0.25, -0.25, 1, 0]
ACT = pb.ActRequest(state=[0] * 4, goal=[0] * 2, sequence=7)
SCORE = pb.ScoreRequest(state=[0] * 4, action=[0] * 2, goal=[0] * 2)
BEST_OF = pb.ActRequest(state=[0] * 4, goal=[0] * 2, mode="ACT_MODE_BEST_OF", candidates=2, sequence=3)


def service(batcher: FakeBatcher, spec: PolicySpec) -> RpcService:
    handlers = RpcHandlers(Metrics(CollectorRegistry()), clock=lambda: 0.0)
    return PolicyService(policies_of(batcher, spec), handlers=handlers, max_rows=8).service()


async def reply_of(method: str, request: Message, *, results: list[list[float]], **spec: Any) -> bytes:
    """The bytes of the reply, when the engine gives `results`."""
    batcher = FakeBatcher()
    answering = asyncio.ensure_future(
        service(batcher, policy_spec(**spec)).unary[method](request.SerializeToString(), CONTEXT)
    )
    await batcher.until_admitted(1)
    batcher.answer(np.array(results, np.float32))
    return await answering


async def refusal_of(method: str, request: Message, **spec: Any) -> ServingError:
    batcher = FakeBatcher()
    with pytest.raises(ServingError) as refused:
        async with asyncio.timeout(60):
            await service(batcher, policy_spec(**spec)).unary[method](request.SerializeToString(), CONTEXT)
    assert not batcher.admitted
    return refused.value


def written(action: str) -> Iterator[str]:
    """The bytes of a reply: policy point_u_maze, version 1000, sequence 7, 125 ms queued, 500 ms computed, 8 rows."""
    yield f"0a {len(bytes.fromhex(action)):02x} {action}"  # field 1, a block of bytes
    yield "12 0c 70 6f 69 6e 74 5f 75 5f 6d 61 7a 65"  # field 2, 12 characters
    yield "1a 04 31 30 30 30"  # field 3
    yield "20 07"  # field 4
    yield "28 c8 d0 07"  # field 5: 125,000 = 72 + 80 * 128 + 7 * 128 * 128
    yield "30 a0 c2 1e"  # field 6: 500,000 = 32 + 66 * 128 + 30 * 128 * 128
    yield "38 08"  # field 7


async def test_the_bytes_of_a_reply_with_one_action() -> None:
    expected = "".join(written("00 00 00 3f  00 00 80 bf"))
    assert await reply_of("Act", ACT, results=[SIX[:2]]) == bytes.fromhex(expected)


async def test_a_reply_with_a_chunk_has_its_actions_in_order_and_their_number() -> None:
    actions = "00 00 00 3f 00 00 80 bf  00 00 80 3e 00 00 80 be  00 00 80 3f 00 00 00 00"
    expected = "".join(written(actions)) + "48 03"  # field 9
    assert await reply_of("Act", ACT, results=[SIX], action_chunk=3) == bytes.fromhex(expected)


async def test_the_best_of_several_chunks_is_a_whole_chunk() -> None:
    results = [[*SIX, -2], [*reversed(SIX), -1]]  # six values of actions, and the energy
    reply = pb.ActResponse.FromString(await reply_of("Act", BEST_OF, results=results, action_chunk=3))
    assert (list(reply.action), reply.action_chunk) == ([0, 1, -0.25, 0.25, -1, 0.5], 3)


async def test_a_score_takes_the_actions_of_a_chunk() -> None:
    batcher = FakeBatcher()
    request = pb.ScoreRequest(state=[1, 2, 3, 4], action=SIX, goal=[10, 20])
    scoring = asyncio.ensure_future(
        service(batcher, policy_spec(action_chunk=3)).unary["Score"](request.SerializeToString(), CONTEXT)
    )
    await batcher.until_admitted(1)
    (queued,) = batcher.admitted
    assert queued.kind is Kind.SCORE
    assert queued.rows.tolist() == [[1, 2, 3, 4, *SIX, 10, 20]]
    batcher.answer(np.array([[-0.5]], np.float32))
    assert list(pb.ScoreResponse.FromString(await scoring).energy) == [-0.5]


async def test_a_score_of_one_action_of_a_chunk_is_refused_with_the_size_of_a_chunk() -> None:
    refused = await refusal_of("Score", SCORE, action_chunk=3)
    assert isinstance(refused, InvalidRequestError)
    assert str(refused) == ("action must hold 6 values of point_u_maze, 3 actions of 2 values for each row, got 2")


@pytest.mark.parametrize(
    ("method", "request_", "message"),
    [
        ("Score", SCORE, "point_u_maze has no critic, so it cannot score actions; choose another policy"),
        (
            "Act",
            BEST_OF,
            "point_u_maze has no critic, so it cannot choose the best of several actions; use another mode, or another"
            " policy",
        ),
    ],
)
async def test_a_policy_without_a_critic_says_so(method: str, request_: Message, message: str) -> None:
    refused = await refusal_of(method, request_, **WITHOUT_CRITIC)
    assert (type(refused), str(refused)) == (NoCriticError, message)


async def test_a_policy_without_a_critic_acts_and_samples() -> None:
    for mode in (pb.ACT_MODE_DETERMINISTIC, pb.ACT_MODE_STOCHASTIC):
        request = pb.ActRequest(state=[0] * 4, goal=[0] * 2, mode=mode)
        reply = pb.ActResponse.FromString(await reply_of("Act", request, results=[SIX[:2]], **WITHOUT_CRITIC))
        assert list(reply.action) == SIX[:2]


async def test_a_stream_goes_on_after_a_request_that_needs_a_critic() -> None:
    async def requests() -> AsyncIterator[bytes]:
        yield BEST_OF.SerializeToString()
        yield ACT.SerializeToString()

    batcher = FakeBatcher()
    replies = service(batcher, policy_spec(**WITHOUT_CRITIC)).streams["ActStream"](requests(), CONTEXT)
    refused = pb.ActResponse.FromString(await anext(replies))
    assert (refused.sequence, refused.failure.code, refused.failure.reason) == (3, 9, "no_critic")
    assert refused.failure.message.startswith("point_u_maze has no critic, so it cannot choose the best of")
    await batcher.until_admitted(1)
    batcher.answer(np.array([SIX[:2]], np.float32))
    assert list(pb.ActResponse.FromString(await anext(replies)).action) == SIX[:2]


async def test_the_id_of_a_robot_has_at_most_128_bytes() -> None:
    longest = "\u00e9" * 64  # two bytes each
    named = pb.ActRequest(state=[0] * 4, goal=[0] * 2, robot_id=longest)
    assert pb.ActResponse.FromString(await reply_of("Act", named, results=[SIX[:2]])).action
    named.robot_id += "a"
    refused = await refusal_of("Act", named)
    assert isinstance(refused, InvalidRequestError)
    assert str(refused) == "robot_id must have at most 128 bytes in UTF-8, got 129"


async def test_a_description_says_where_goals_have_quaternions() -> None:
    names = ("x [m]", "qw [1]", "qx [1]", "qy [1]", "qz [1]")
    described = service(FakeBatcher(), policy_spec(goal_names=names, goal_quaternions=(1,))).unary["Describe"]
    reply = pb.DescribeResponse.FromString(await described(b"", CONTEXT))
    assert PolicyDescription.from_proto(reply).goal_quaternions == (1,)


async def test_bytes_that_are_no_report_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"the 1 bytes of the request are not a kilolayer\.v1\.ReportRequest"):
        await service(FakeBatcher(), policy_spec()).unary["Report"](b"\xff", CONTEXT)
