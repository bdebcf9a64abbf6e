"""The retrying callers, with servers whose replies are worked out by hand."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from kilolayer.v1 import policy_pb2 as pb
from tests.clients.fakes import closed_address
from tests.faults.retrying_caller import RetryingCallers

REQUEST = pb.ActRequest(state=[1], goal=[2])
Answer = Callable[[int, Any], Any]


@asynccontextmanager
async def serving(answer: Answer) -> AsyncGenerator[str]:
    """A server that answers its calls, by their number, with `answer`; its address."""
    number = 0

    async def act(request: pb.ActRequest, context: Any) -> pb.ActResponse:
        nonlocal number
        assert request == REQUEST
        number += 1
        return await answer(number, context)

    handler = grpc.unary_unary_rpc_method_handler(act, pb.ActRequest.FromString, pb.ActResponse.SerializeToString)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("kilolayer.v1.Policy", {"Act": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


async def sound(_number: int, _context: Any) -> pb.ActResponse:
    return pb.ActResponse(action=[0.5])


async def other_from_the_third_on(number: int, _context: Any) -> pb.ActResponse:
    return pb.ActResponse(action=[0.5 if number < 3 else 0.75])


async def draining(_number: int, context: Any) -> Any:
    await context.abort(grpc.StatusCode.UNAVAILABLE, "shutting down", (("kilolayer-reason", "draining"),))


async def broken_at_first(number: int, context: Any) -> Any:
    if number == 1:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
    return pb.ActResponse(action=[0.5])


async def test_a_refused_call_goes_to_the_next_server_and_is_not_lost() -> None:
    with closed_address() as nowhere:
        async with (
            serving(draining) as first,
            serving(sound) as second,
            RetryingCallers([first, nowhere, second], request=REQUEST, count=2) as callers,
        ):
            await callers.until_answered(6)
            outcome = await callers.stop()
    assert outcome.refused == {"draining": 1, "not sent": 2}  # caller 0 begins with the first, caller 1 with `nowhere`
    assert not outcome.lost
    assert outcome.wrong == 0
    assert outcome.longest_gap_s > 0


async def test_a_call_that_broke_without_a_reason_is_lost() -> None:
    async with serving(broken_at_first) as address, RetryingCallers([address], request=REQUEST, count=1) as callers:
        await callers.until_answered(1)
        outcome = await callers.stop()
    assert list(outcome.lost.items()) == [("UNAVAILABLE  Socket closed", 1)]
    assert not outcome.refused


async def test_other_bytes_than_those_of_the_first_answer_are_wrong() -> None:
    answers = serving(other_from_the_third_on)
    async with answers as address, RetryingCallers([address], request=REQUEST, count=1) as callers:
        await callers.until_answered(5)
        outcome = await callers.stop()
    assert outcome.wrong == outcome.answered - 2
